"""Streams that the server refuses or bounds: bad requests, audio that is no audio, idle callers and slow readers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import serving
from tests.pace import awake
from tests.service.streams import (
    END,
    KEEP_ALIVE,
    audio,
    config,
    events,
    is_kind,
    live,
    reads,
    refused,
    refused_in_full_flow,
    texts,
)
from tests.speech import samples_as_text, speech, tone
from typeless_grpc.client import CallFailed
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import InvalidInput, NotFound, Overloaded
from typeless_grpc.interceptors import seam
from typeless_grpc.pb.v1.transcription_pb2 import StreamConfig, StreamTranscribeRequest

BAD = {
    "audio first": (audio(tone(0.1)), "STREAM_ORDER", "config"),
    "nothing first": ([StreamTranscribeRequest()], "STREAM_ORDER", "config"),
    "config twice": ([config(), config()], "STREAM_ORDER", "config"),
    "nothing set": ([config(), StreamTranscribeRequest()], "STREAM_ORDER", "request"),
    "after the end": ([config(), END, *audio(tone(0.1))], "STREAM_ORDER", "request"),
    "empty control": ([config(), StreamTranscribeRequest(control=0)], "INVALID_FIELD", "control"),
    "unknown control": ([config(), StreamTranscribeRequest(control=9)], "INVALID_FIELD", "control"),
    "unknown encoding": ([config(format={"encoding": 77})], "UNKNOWN_ENCODING", "config.format.encoding"),
    "no rate": ([config(format={"encoding": 1})], "INVALID_FIELD", "config.format.sample_rate_hertz"),
    "odd rate": (
        [config(format={"encoding": 1, "sample_rate_hertz": 7999})],
        "INVALID_FIELD",
        "config.format.sample_rate_hertz",
    ),
    "unknown mode": ([config(mode=9)], "INVALID_FIELD", "config.mode"),
    "interims of a file": ([config(mode=2, interim_results=True)], "INVALID_FIELD", "config.interim_results"),
    "interval without interims": (
        [config(interim_interval=Duration(seconds=1))],
        "INVALID_FIELD",
        "config.interim_interval",
    ),
    "interval too short": (
        [config(interim_results=True, interim_interval=Duration(nanos=1))],
        "INVALID_FIELD",
        "config.interim_interval",
    ),
    "bad option": (
        [config(options={"decoding": {"beam_size": 11}})],
        "INVALID_FIELD",
        "config.options.decoding.beam_size",
    ),
    "bad update": (
        [config(), StreamTranscribeRequest(update={"decoding": {"beam_size": 11}})],
        "INVALID_FIELD",
        "update.decoding.beam_size",
    ),
    "padding beyond the window": (
        [config(), StreamTranscribeRequest(update={"voice_activity": {"speech_padding": Duration(seconds=16)}})],
        "INVALID_FIELD",
        "update.voice_activity.speech_padding",
    ),
    "resume and options": (
        [config(resume_session_id="x", options={"language": "en"}, format=None)],
        "INVALID_FIELD",
        "config.options",
    ),
    "sequence alone": ([config(resume_after_sequence=3)], "INVALID_FIELD", "config.resume_after_sequence"),
    "garbage": (
        [config(format=None), *audio(b"this is no audio at all " * 4000), END],
        "AUDIO_UNDECODABLE",
        "audio",
    ),
}


@pytest.mark.parametrize(("requests", "reason", "field"), BAD.values(), ids=BAD)
async def test_an_invalid_request_is_refused_with_the_field(requests, reason, field):
    async with serving(ScriptedEngine()) as served:
        failed = await refused(served, requests)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.reason == reason
    assert [path for path, _ in failed.fields] == [field]


async def test_a_stream_that_ends_before_its_config_is_refused():
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(served, [])
    assert CallFailed.of(caught.value).reason == "STREAM_ORDER"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("No model is called 'x'.", reason="MODEL_NOT_FOUND"), grpc.StatusCode.NOT_FOUND),
        (InvalidInput("options.language", "no", reason="LANGUAGE_NOT_SUPPORTED"), grpc.StatusCode.INVALID_ARGUMENT),
        (Overloaded("Full."), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_an_option_that_the_engine_lacks_is_refused_at_once(error, code):
    async with serving(ScriptedEngine(lambda call: error)) as served:
        failed = await refused(served, [config()])
    assert (failed.code, failed.reason) == (code, error.reason)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([config(options={"language": "cy"})], "config.options.language"),
        ([config(), StreamTranscribeRequest(update={"language": "cy"})], "update.language"),
    ],
    ids=["at first", "later"],
)
async def test_a_language_that_the_model_lacks_is_refused_where_it_was_requested(requests, field):
    def script(call: EngineCall) -> str | BaseException:
        is_known = call.options.language != "cy"
        return "" if is_known else InvalidInput("options.language", "no", reason="LANGUAGE_NOT_SUPPORTED")

    async with serving(ScriptedEngine(script)) as served:
        failed = await refused(served, requests)
    assert [path for path, _ in failed.fields] == [field]


async def test_garbage_hurts_only_its_own_stream():
    async with serving(ScriptedEngine(lambda call: "fine")) as served:
        good = served.transcription.StreamTranscribe()
        await good.write(config())
        await good.read()
        failed = await refused(served, [config(format=None), *audio(b"\0garbage" * 9000), END])
        assert failed.reason == "AUDIO_UNDECODABLE"
        for request in [*audio(tone(1.0)), END]:
            await good.write(request)
        got = await reads(good, is_kind("completed"))
    assert texts(got) == ["fine"]


async def test_audio_that_ends_within_a_sample_is_a_warning():
    async with serving(ScriptedEngine(lambda call: "fine")) as served:
        got = await events(served, live(data=tone(1.0) + b"\1"))
    (warning,) = [response.warning for response in got if response.HasField("warning")]
    assert (warning.code, warning.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "AUDIO_TRUNCATED")
    assert texts(got) == ["fine"]


async def test_a_stream_that_is_too_long_is_refused_after_the_finals_of_what_fits():
    async with serving(ScriptedEngine(samples_as_text), max_stream_s=2) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(3.0), 100_000)]:
            await call.write(request)
        got = await reads(call, is_kind("segment"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert CallFailed.of(caught.value).reason == "AUDIO_TOO_LONG"
    assert got[-1].segment.text.startswith("32000 ")


async def test_one_stream_too_many_is_refused():
    async with serving(ScriptedEngine(), max_streams_per_caller=2) as served:
        calls = [served.transcription.StreamTranscribe() for _ in range(2)]
        for call in calls:
            await call.write(config())
            await call.read()
        failed = await refused(served, [config()])
        for call in calls:
            call.cancel()
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")


async def test_an_idle_stream_is_warned_and_then_ended():
    clock = FakeClock()
    async with serving(ScriptedEngine(lambda call: "hello"), clock=clock, stream_idle_timeout_s=60) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        await call.read()
        for request in audio(tone(1.0)):
            await call.write(request)
        for _ in range(3):
            await call.write(KEEP_ALIVE)
            await call.write(StreamTranscribeRequest(update={"language": "en"}))  # its answer shows that all has come
            await reads(call, is_kind("configured"))
            clock.advance(55)
            warning = (await reads(call, is_kind("warning")))[-1].warning
            assert (warning.reason, warning.code) == ("STREAM_IDLE", grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        clock.advance(6)
        got = await reads(call, is_kind("completed"))
        assert await call.read() is grpc.aio.EOF
    assert got[-1].completed.transcript.text == "hello"


async def test_a_caller_that_reads_nothing_is_not_read_from():
    settings: dict[str, Any] = {"stream_unread_events": 16, "stream_waiting_bytes": 4096}
    n_sent = 0
    async with serving(ScriptedEngine(lambda call: "x" * 20_000), **settings) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())

        async def send() -> None:
            nonlocal n_sent
            payload = speech(0.3, 0.9)
            for _ in range(2000):
                await call.write(StreamTranscribeRequest(audio=payload))
                n_sent += 1
            await call.done_writing()

        sending = asyncio.create_task(send())
        while True:
            before = n_sent
            await awake(0.7)
            if n_sent == before and n_sent:
                break
        assert not sending.done()
        assert n_sent < 1000
        sending.cancel()
        call.cancel()


@pytest.mark.parametrize("n_bytes", [3200, 65536])
@pytest.mark.parametrize(
    ("first", "reason", "settings"),
    [
        (config(), "KEY_REQUIRED", {"auth_enabled": True, "require_auth": True}),
        (config(), "AUDIO_TOO_LONG", {"max_stream_s": 3}),
        (StreamTranscribeRequest(config=StreamConfig()), "AUDIO_UNDECODABLE", {}),
    ],
    ids=["at once", "in the middle", "a recording"],
)
async def test_a_refusal_reaches_a_client_that_is_still_sending(
    first: StreamTranscribeRequest, reason: str, settings: dict[str, Any], n_bytes: int
):
    async with serving(ScriptedEngine(), **settings) as served:
        failed = await asyncio.gather(*(refused_in_full_flow(served, first, n_bytes) for _ in range(8)))
    assert [one.reason for one in failed] == [reason] * 8


async def test_a_refusal_does_not_wait_for_a_client_that_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seam, "READ_ON_S", 60.0)
    async with serving(ScriptedEngine(), auth_enabled=True, require_auth=True) as served:
        started_s = asyncio.get_running_loop().time()
        assert (await refused(served, [config()])).reason == "KEY_REQUIRED"
        assert asyncio.get_running_loop().time() - started_s < 30
