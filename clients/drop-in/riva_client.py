"""NVIDIA's own client, unchanged, against this server: `python riva_client.py models|file|stream [RECORDING]`.

TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys.
"""

import os
import sys

import riva.client
import riva.client.proto.riva_asr_pb2 as riva_asr


def main(command: str, *paths: str) -> None:
    key = os.environ.get("TYPELESS_API_KEY")
    server = os.environ.get("TYPELESS_SERVER", "localhost:50051")
    auth = riva.client.Auth(
        use_ssl=False, uri=server, metadata_args=[["authorization", f"Bearer {key}"]] if key else None
    )
    service = riva.client.ASRService(auth)
    config = riva.client.RecognitionConfig(language_code="en-US", max_alternatives=1)
    if command == "models":
        listed = service.stub.GetRivaSpeechRecognitionConfig(
            riva_asr.RivaSpeechRecognitionConfigRequest(), metadata=auth.get_auth_metadata()
        )
        for row in listed.model_config:
            print(row.model_name, row.parameters["type"], row.parameters["language_code"])
    elif command == "file":
        with open(paths[0], "rb") as file:
            response = service.offline_recognize(file.read(), config)
        print("".join(result.alternatives[0].transcript for result in response.results).strip())
    else:
        streaming = riva.client.StreamingRecognitionConfig(config=config, interim_results=True)
        with riva.client.AudioChunkFileIterator(paths[0], 1600, riva.client.sleep_audio_length) as chunks:
            for response in service.streaming_response_generator(chunks, streaming):
                result = response.results[0]
                print("final:" if result.is_final else "interim:", result.alternatives[0].transcript.strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
