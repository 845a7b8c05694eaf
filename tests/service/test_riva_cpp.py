"""The requests of NVIDIA's clients for C++, rebuilt field by field from riva_asr_client and riva_streaming_asr_client.

They send a file as it is, with its header, and declare what the header says. Diarization is always there, switched off,
and so are a context without phrases and the number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import AUDIO, serving
from tests.service.riva import recognize, streamed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.riva import messages

WAV = (AUDIO / "en_short.wav").read_bytes()
HEADER_BYTES, RATE_HZ, CHUNK_MS, BYTES_PER_SAMPLE = 44, 16_000, 100, 2


def config(encoding: str = "LINEAR_PCM", **flags: Any) -> dict[str, Any]:
    """The configuration with the defaults of the command line. flags: fields that its options set."""
    defaults = {
        "encoding": messages.AudioEncoding[encoding],
        "sample_rate_hertz": RATE_HZ,
        "language_code": "en-US",
        "max_alternatives": 1,
        "audio_channel_count": 1,
        "enable_word_time_offsets": True,
        "enable_automatic_punctuation": True,
        "verbatim_transcripts": True,
        "diarization_config": {"enable_speaker_diarization": False, "max_speaker_count": 4},
        "speech_contexts": [{"phrases": [], "boost": 10.0}],
    }
    return defaults | flags


def requests(file: bytes, **flags: Any) -> Iterator[Any]:
    """GenerateRequests: 100 ms in each message, and the header before the first."""
    streaming = {"interim_results": True, "config": config(**flags)}
    yield messages.StreamingRecognizeRequest(streaming_config=streaming)
    chunk_bytes, offset = RATE_HZ * CHUNK_MS // 1000 * BYTES_PER_SAMPLE, 0
    while offset < len(file):
        n_bytes = chunk_bytes + (HEADER_BYTES if offset == 0 else 0)
        yield messages.StreamingRecognizeRequest(audio_content=file[offset : offset + n_bytes])
        offset += n_bytes


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {
            "endpointing_config": {
                "start_history": 300,
                "start_threshold": 0.5,
                "stop_history": 800,
                "stop_threshold": 0.9,
            }
        },
        {"endpointing_config": {"stop_history_eou": 240, "stop_threshold_eou": 0.9}},
        {"model": "parakeet-1.1b-en-US-asr-streaming", "custom_configuration": {"enable_vad_endpointing": "true"}},
        {"speech_contexts": [{"phrases": ["AntiBERTa", "ABlooper"], "boost": 20.0}]},
    ],
    ids=["defaults", "endpointing", "end of utterance", "a model and custom options", "boosted words"],
)
async def test_the_streaming_client_gets_the_text_that_it_joins(flags: dict[str, Any]):
    async with serving(ScriptedEngine()) as served:
        plain = await recognize(served, WAV)
        responses = await streamed(served, list(requests(WAV, **flags)))
    finals, partial = "", ""
    for response in responses:  # as ReceiveResponses and AppendResult
        partial = ""
        for result in response.results:
            assert result.alternatives
            assert not result.HasField("pipeline_states")
            if result.is_final:
                finals += result.alternatives[0].transcript
            elif result.stability != 1:
                partial += result.alternatives[0].transcript
    assert finals.strip()
    assert not partial  # the client prints it after the finals
    assert finals[0] != " "
    assert responses[-1].results[0].audio_processed > 0
    words = [word for response in responses for result in response.results for word in result.alternatives[0].words]
    assert [word.word for word in words] == finals.split()
    assert finals.split()[0] == plain.results[0].alternatives[0].transcript.split()[0]


@pytest.mark.parametrize(
    ("file", "encoding"), [("en_short.wav", "LINEAR_PCM"), ("en_short.flac", "FLAC"), ("en_short.ogg", "OGGOPUS")]
)
async def test_the_offline_client_gets_a_result_with_words(file: str, encoding: str):
    async with serving(ScriptedEngine()) as served:
        response = await recognize(served, (AUDIO / file).read_bytes(), **config(encoding))
        plain = await recognize(served, (AUDIO / file).read_bytes(), enable_word_time_offsets=True)
    assert response == plain
    assert response.results[0].alternatives[0].words


async def test_the_offline_clients_separate_channels_have_results_of_their_own():
    stereo = (AUDIO / "two_speakers_stereo.flac").read_bytes()
    flags = {"audio_channel_count": 2, "enable_separate_recognition_per_channel": True}
    async with serving(ScriptedEngine()) as served:
        response = await recognize(served, stereo, **config("FLAC", **flags))
    assert {result.channel_tag for result in response.results} == {1, 2}
