"""Transcribe, from a real channel to a scripted engine and back."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import AUDIO, fixture, request, serving
from tests.media import KINDS, TONES_S, media, onsets_s
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.interface import DecodeOptions, Lane, Task, VoiceActivityOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, NotFound, Overloaded
from typeless_grpc.pb.v1 import audio_pb2, server_pb2, transcription_pb2


async def refused(call: Any) -> CallFailed:
    """What a call ends with, its details read as a client reads them."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return CallFailed.of(caught.value)


async def test_speech_becomes_a_transcript_with_stats():
    engine = ScriptedEngine(lambda call: "hello there")
    async with serving(engine) as served:
        answer = await served.transcription.Transcribe(request(seconds=2.0, language="de"))
    assert answer.transcript.text == "hello there"
    assert [segment.text for segment in answer.transcript.segments] == ["hello there"]
    assert answer.transcript.segments[0].end_offset.ToTimedelta().total_seconds() == 2.0
    assert answer.transcript.language == "de"
    assert answer.transcript.audio_duration.ToTimedelta().total_seconds() == 2.0
    assert answer.stats.realtime_factor > 0
    assert answer.stats.chunk_count == 1
    assert answer.stats.chunking == transcription_pb2.CHUNKING_STRATEGY_WHOLE
    assert answer.stats.processing_time.ToTimedelta().total_seconds() > 0


async def test_silence_is_an_empty_transcript_and_no_error():
    async with serving(ScriptedEngine(lambda call: "")) as served:
        answer = await served.transcription.Transcribe(request())
    assert answer.transcript.text == ""
    assert not answer.transcript.segments
    assert answer.transcript.audio_duration.seconds == 1


async def test_options_reach_the_engine_as_the_caller_set_them():
    engine = ScriptedEngine()
    requested = request(
        model="tiny.en",
        language="en-GB",
        task=transcription_pb2.TASK_TRANSLATE,
        prompt="Dr Zelvari",
        hotwords=["Korventa"],
        word_timestamps=True,
        decoding=transcription_pb2.DecodingOptions(beam_size=5, temperatures=[0.0, 0.4]),
        voice_activity=transcription_pb2.VoiceActivityOptions(threshold=0.25, end_silence=Duration(seconds=1)),
    )
    async with serving(engine) as served:
        await served.transcription.Transcribe(requested)
    (call,) = engine.calls
    assert call.options == DecodeOptions(
        model="tiny.en",
        language="en",
        task=Task.TRANSLATE,
        prompt="Dr Zelvari",
        hotwords=("Korventa",),
        word_timestamps=True,
        beam_size=5,
        temperatures=(0.0, 0.4),
        voice_activity=VoiceActivityOptions(threshold=0.25, end_silence_s=1.0),
    )
    assert call.ticket.lane is Lane.UNARY
    assert call.audio.dtype == np.float32
    assert call.audio.shape == (16_000,)


@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3", "m4a", "ogg", "webm", "wma", "aiff"])
async def test_a_file_of_any_container_is_decoded(suffix: str):
    engine = ScriptedEngine()
    file = f"en_short.{suffix}"
    source = audio_pb2.AudioSource(content=(AUDIO / file).read_bytes())
    async with serving(engine) as served:
        await served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source))
    assert len(engine.calls[0].audio) / 16_000 == pytest.approx(fixture(file)["duration_s"], abs=0.1)


async def test_text_has_the_times_of_the_video_that_a_recording_is_of():
    engine = ScriptedEngine()
    video = media(KINDS["mp4"], moved=lambda at_s: at_s + 4.9, with_video=True)
    source = audio_pb2.AudioSource(content=video)
    async with serving(engine) as served:
        answer = await served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source))
    assert onsets_s(engine.calls[0].audio) == pytest.approx([at_s + 4.9 for at_s in TONES_S], abs=0.07)
    assert answer.transcript.audio_duration.ToTimedelta().total_seconds() == pytest.approx(4.9 + 4.5, abs=0.1)


def audio(content: bytes = b"", **fields: Any) -> transcription_pb2.TranscribeRequest:
    return transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=content, **fields))


EMPTY_WAV = (AUDIO / "en_short.wav").read_bytes()[:40] + bytes(4)
WHOLE_FLAC = (AUDIO / "en_short.flac").read_bytes()
RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)


@pytest.mark.parametrize(
    ("invalid", "code", "reason", "field"),
    [
        pytest.param(audio(), "INVALID_ARGUMENT", "AUDIO_MISSING", "audio.content", id="no audio"),
        pytest.param(audio(b"<html>"), "INVALID_ARGUMENT", "AUDIO_UNDECODABLE", "audio.content", id="not audio"),
        pytest.param(
            audio(WHOLE_FLAC[:9000]), "INVALID_ARGUMENT", "AUDIO_TRUNCATED", "audio.content", id="half a file"
        ),
        pytest.param(
            audio(EMPTY_WAV),
            "INVALID_ARGUMENT",
            "AUDIO_EMPTY",
            "audio.content",
            id="header only",
        ),
        pytest.param(
            audio(b"\0" * 320_002, format=RAW), "INVALID_ARGUMENT", "AUDIO_TOO_LONG", "audio.content", id="too long"
        ),
        pytest.param(
            audio(b"\0" * 3, format=RAW), "INVALID_ARGUMENT", "AUDIO_TRUNCATED", "audio.content", id="half a sample"
        ),
        pytest.param(
            transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(uri="https://example.org/a.wav")),
            "INVALID_ARGUMENT",
            "URI_SCHEME_NOT_ALLOWED",
            "audio.uri",
            id="uri",
        ),
        pytest.param(
            request(decoding=transcription_pb2.DecodingOptions(beam_size=11)),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            "options.decoding.beam_size",
            id="bad option",
        ),
    ],
)
async def test_an_invalid_request_names_its_field(
    invalid: transcription_pb2.TranscribeRequest, code: str, reason: str, field: str
):
    engine = ScriptedEngine()
    async with serving(engine, max_audio_s=10) as served:
        failed = await refused(served.transcription.Transcribe(invalid))
    assert (failed.code.name, failed.reason) == (code, reason)
    assert [name for name, _ in failed.fields] == [field]
    assert failed.retry_after_s is None
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "code", "reason", "retry_after_s"),
    [
        (
            InvalidInput("options.language", "not known", reason="LANGUAGE_NOT_SUPPORTED"),
            "INVALID_ARGUMENT",
            None,
            None,
        ),
        (NotFound("No such model.", reason="MODEL_NOT_FOUND"), "NOT_FOUND", None, None),
        (Overloaded("Full.", retry_after_s=2.5), "UNAVAILABLE", "OVERLOADED", 2.5),
        (DeadlineExceeded("Too late."), "DEADLINE_EXCEEDED", "DEADLINE_CANNOT_BE_MET", None),
        (EngineFailed("The model failed."), "INTERNAL", "ENGINE_FAILED", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_a_refusal_of_the_engine_reaches_the_caller(
    error: Any, code: str, reason: str | None, retry_after_s: float | None
):
    async with serving(ScriptedEngine(lambda call: error)) as served:
        failed = await refused(served.transcription.Transcribe(request()))
    assert (failed.code.name, failed.message, failed.retry_after_s) == (code, error.message, retry_after_s)
    assert failed.reason == (reason or error.reason)


async def test_an_unforeseen_error_does_not_reveal_its_text():
    async with serving(ScriptedEngine(lambda call: RuntimeError("secret path /data/x"))) as served:
        failed = await refused(served.transcription.Transcribe(request(), metadata=(("x-request-id", "r-1"),)))
    assert (failed.code.name, failed.reason, failed.request_id) == ("INTERNAL", "INTERNAL", "r-1")
    assert "secret" not in failed.message
    assert "r-1" in failed.message


async def test_a_request_over_the_message_limit_is_refused_with_a_reason():
    engine = ScriptedEngine()
    async with serving(engine, max_message_bytes=64 * 1024) as served:
        failed = await refused(served.transcription.Transcribe(audio(bytes(70_000), format=RAW)))
        far_over = await refused(served.transcription.Transcribe(audio(bytes(100_000), format=RAW)))
        answer = await served.transcription.Transcribe(request())
    assert (failed.code.name, failed.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    # An eighth above the limit gRPC itself ends the call, before a message of ours could be made of it.
    assert far_over.code.name == "RESOURCE_EXHAUSTED"
    assert answer.transcript.text == "1.0 seconds"
    assert len(engine.calls) == 1


async def test_cancelling_a_call_stops_its_work():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        call = served.transcription.Transcribe(request())
        await engine.until(n_calls=1)
        call.cancel()
        await engine.until(n_cancelled=1)
        engine.gate.set()
        assert (await served.transcription.Transcribe(request())).transcript.text
    assert engine.n_cancelled == 1


async def test_a_deadline_ends_the_call_and_its_work():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        failed = await refused(served.transcription.Transcribe(request(), timeout=0.2))
        await engine.until(n_cancelled=1)
    assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_one_slow_call_does_not_delay_another():
    engine = ScriptedEngine(lambda call: f"{len(call.audio)}")
    engine.gate.clear()
    async with serving(engine) as served:
        slow = served.transcription.Transcribe(request())
        await engine.until(n_calls=1)
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=5)
        engine.gate.set()
        await slow
    assert info.version


async def test_the_request_id_comes_back():
    async with serving(ScriptedEngine()) as served:
        named = served.transcription.Transcribe(request(), metadata=(("x-request-id", "my-call"),))
        await named
        unnamed = served.transcription.Transcribe(request())
        await unnamed
        assert (await named.trailing_metadata())["x-request-id"] == "my-call"
        assert len((await unnamed.trailing_metadata())["x-request-id"]) == 32


async def test_server_info_has_the_limits_in_force():
    async with serving(ScriptedEngine(), model="tiny.en", max_audio_s=90, max_message_bytes=70_000) as served:
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert info.default_model == "tiny.en"
    assert info.max_audio_duration.seconds == 90
    assert info.max_message_bytes == 70_000
