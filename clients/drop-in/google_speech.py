"""Google's own client, unchanged, against this server: `python google_speech.py v1|v2|job|stream RECORDING`.

TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys. With
TYPELESS_TLS=1 it uses TLS; GRPC_DEFAULT_SSL_ROOTS_FILE_PATH is then the certificate of an authority of one's own. With
GOOGLE_CLOUD_UNIVERSE_DOMAIN it is a plain `SpeechClient()`, and `typeless keys google-account` makes its credentials.
"""

import os
import sys
import wave
from typing import Any

import grpc
from google.cloud import speech_v1, speech_v2
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport as TransportV1
from google.cloud.speech_v2.services.speech.transports import SpeechGrpcTransport as TransportV2

RECOGNIZER = "projects/-/locations/global/recognizers/_"
SERVER = os.environ.get("TYPELESS_SERVER", "localhost:50051")
KEY = os.environ.get("TYPELESS_API_KEY", "")


class WithKey(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends the key with every call, also with those that poll operations."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or ()), ("x-goog-api-key", KEY)]), request)

    intercept_stream_stream = intercept_unary_unary


def client(module: Any, transport: Any) -> Any:
    """A client as for Google itself; over TLS with another address; or over plaintext."""
    if os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN"):
        return module.SpeechClient()
    if os.environ.get("TYPELESS_TLS"):
        return module.SpeechClient(client_options={"api_endpoint": SERVER, "api_key": KEY})
    channel = grpc.intercept_channel(grpc.insecure_channel(SERVER), WithKey())
    return module.SpeechClient(transport=transport(channel=channel))


def main(command: str, path: str) -> None:
    v1 = client(speech_v1, TransportV1)
    with open(path, "rb") as file:
        content = file.read()
    config = speech_v1.RecognitionConfig(language_code="en-US")
    audio = speech_v1.RecognitionAudio(content=content)
    if command == "v1":
        print_results(v1.recognize(config=config, audio=audio).results)
    elif command == "job":
        operation = v1.long_running_recognize(config=config, audio=audio)
        print_results(operation.result(timeout=60).results)
    elif command == "v2":
        v2 = client(speech_v2, TransportV2)
        config = speech_v2.RecognitionConfig(auto_decoding_config={}, language_codes=["en-US"], model="long")
        request = speech_v2.RecognizeRequest(recognizer=RECOGNIZER, config=config, content=content)
        print_results(v2.recognize(request).results)
    else:
        stream(v1, path)


def stream(client: speech_v1.SpeechClient, path: str) -> None:
    with wave.open(path) as recording:
        config = speech_v1.RecognitionConfig(
            encoding=speech_v1.RecognitionConfig.AudioEncoding.LINEAR16,
            sample_rate_hertz=recording.getframerate(),
            language_code="en-US",
        )
        streaming = speech_v1.StreamingRecognitionConfig(config=config, interim_results=True)
        samples = iter(lambda: recording.readframes(1600), b"")
        requests = (speech_v1.StreamingRecognizeRequest(audio_content=data) for data in samples)
        for response in client.streaming_recognize(streaming, requests):
            for result in response.results:
                print("final:" if result.is_final else "interim:", result.alternatives[0].transcript.strip())


def print_results(results: list) -> None:
    print("".join(result.alternatives[0].transcript for result in results))


if __name__ == "__main__":
    main(*sys.argv[1:])
