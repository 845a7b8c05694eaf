"""A deploy with `stream_store`: a server that stops hands its streams over, and their callers notice nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, Served, serving
from tests.relay import proxied
from tests.service.streams import END, audio, config, is_kind, kinds, reads
from tests.service.test_stream_resume import RAW, checked, recognized
from tests.speech import cut, silence, speech, tone
from typeless_grpc.client import AsyncClient, CallFailed, Options, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1.transcription_pb2 import STREAM_END_REASON_CALLER, StreamTranscribeResponse

TALK = speech(*(seconds for n in range(20) for seconds in (0.6 + n / 50, 0.9)))
CONTENTS = {
    "live": (TALK, StreamOptions(Options(language="en", word_timestamps=True), RAW)),
    "interims": (TALK, StreamOptions(Options(language="en"), RAW, interim_results=True)),
    "file": (TALK, StreamOptions(Options(language="en"), RAW, mode="file")),
    "renditions": (TALK, StreamOptions(Options(language="en", output_formats=["srt"]), RAW)),
    "container": ((AUDIO / "en_minute.ogg").read_bytes(), StreamOptions(Options(language="en"))),
}


@asynccontextmanager
async def two_servers(directory: Path, **settings: Any) -> AsyncIterator[tuple[Served, Served]]:
    """Servers that share a store. They have 20 s to drain."""
    shared = {
        "stream_store": "database",
        "database_url": f"sqlite:///{directory}/jobs.db",
        "storage_url": str(directory / "storage"),
        "drain_timeout_s": 20,
    }
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(ScriptedEngine(recognized), **shared | settings)) for _ in "ab"
        ]
        yield servers[0], servers[1]


async def stop_s(served: Served) -> float:
    """Stop a server; return how long it took."""
    began_s = time.monotonic()
    await served.server.stop()
    return time.monotonic() - began_s


async def resumed(
    served: Served, got: list[StreamTranscribeResponse], data: bytes
) -> tuple[int, list[StreamTranscribeResponse]]:
    """Resume a session as the guide says, to its end. Return the acknowledged bytes, and the events."""
    call = served.transcription.StreamTranscribe()
    await call.write(
        config(format=None, resume_session_id=got[0].started.session_id, resume_after_sequence=len(got)),
    )
    started = await call.read()
    assert started.started.resumed
    for request in [*audio(data[started.acknowledged_bytes :]), END]:
        await call.write(request)
    return started.acknowledged_bytes, await reads(call, is_kind("completed"))


def final(responses: list[StreamTranscribeResponse]) -> list[Any]:
    """What must be the same with and without an interruption.

    An utterance may be decoded before or after the next one starts, so segments and activity are in order each.
    """
    completed = responses[-1].completed
    assert completed.end_reason == STREAM_END_REASON_CALLER
    assert not any(response.HasField("warning") for response in responses)
    sequences = [response.sequence for response in responses]
    assert sequences == sorted(set(sequences))
    segments = [response.segment for response in responses if response.HasField("segment")]
    activity = [response.speech_activity for response in responses if response.HasField("speech_activity")]
    return [*segments, *activity, completed.transcript]


@pytest.mark.parametrize("content", sorted(CONTENTS))
async def test_the_client_continues_on_the_next_server_as_if_nothing_had_happened(content: str, tmp_path: Path):
    data, options = CONTENTS[content]

    async def sent(stopping: asyncio.Event) -> AsyncIterator[bytes]:
        payloads = list(cut(data, [max(400, len(data) // 300)]))
        for n, payload in enumerate(payloads):
            yield payload
            if n == len(payloads) // 2:
                stopping.set()
            await asyncio.sleep(0.004)

    async with two_servers(tmp_path) as (first, second), proxied(first.target) as proxy:
        async with AsyncClient(second.target) as client:
            expected = final([event async for event in client.stream(sent(asyncio.Event()), options)])
        stopping = asyncio.Event()

        async def deploy() -> float:
            await stopping.wait()
            proxy.send_to(second.target)  # for the connections to come
            return await stop_s(first)

        async with AsyncClient(proxy.target) as client:
            deploying = asyncio.create_task(deploy())
            got = [event async for event in client.stream(sent(stopping), options)]
        assert final(got) == expected
        assert await deploying < 8  # a pause within 5 s


async def test_a_stream_is_handed_over_at_a_pause_with_all_that_it_has(tmp_path: Path):
    async with two_servers(tmp_path) as (first, second):
        spoken = tone(1.0) + silence(1.0)
        call = first.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0))]:
            await call.write(request)
        got = await reads(call, is_kind("speech_activity"))
        stopping = asyncio.create_task(stop_s(first))
        for request in audio(silence(1.0)):
            await call.write(request)
        got += await reads(call, is_kind("segment"))  # not before the final
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        failed = CallFailed.of(caught.value)
        assert (failed.code, failed.reason, failed.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, "DRAINING", 0.1)
        assert await stopping < 4
        acknowledged, rest = await resumed(second, got, spoken + tone(1.0))
    assert len(tone(1.0)) < acknowledged <= len(spoken)  # the pause is stored, too
    assert kinds(got) == ["started", "speech_activity", "speech_activity", "segment"]
    assert kinds(rest) == ["speech_activity", "speech_activity", "segment", "completed"]
    assert len(rest[-1].completed.transcript.segments) == 2


async def test_a_speaker_without_a_pause_is_not_waited_for_longer_than_a_quarter_of_the_drain_time(tmp_path: Path):
    async with two_servers(tmp_path, drain_timeout_s=4) as (first, second):
        call = first.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(2.0))]:
            await call.write(request)
        got = await reads(call, is_kind("speech_activity"))
        assert 0.9 < await stop_s(first) < 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert CallFailed.of(caught.value).reason == "DRAINING"
        _, rest = await resumed(second, got, tone(2.0))
    assert len(checked([*got, *rest])) == 1


async def test_a_session_whose_call_broke_does_not_delay_the_stop_and_is_resumed_elsewhere(tmp_path: Path):
    async with two_servers(tmp_path) as (first, second):
        call = first.transcription.StreamTranscribe()
        for request in [config(), *audio(speech(1.0, 1.0, 1.0))]:
            await call.write(request)
        got = await reads(call, is_kind("segment"))
        call.cancel()
        assert await stop_s(first) < 3
        _, rest = await resumed(second, got, speech(1.0, 1.0, 1.0))
    assert len(checked([*got, *rest])) == 2


async def test_a_stream_whose_caller_has_ended_its_audio_is_completed_by_either(tmp_path: Path):
    async with two_servers(tmp_path, drain_timeout_s=4) as (first, second):
        engine = ScriptedEngine(recognized)
        async with serving(engine, **first.given) as busy:
            call = busy.transcription.StreamTranscribe()
            await call.write(config())
            got = await reads(call, is_kind("started"))
            engine.gate.clear()
            for request in [*audio(tone(1.0)), END]:
                await call.write(request)
            got += await reads(call, lambda event: event.speech_activity.type == 2)
            await stop_s(busy)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
        acknowledged, rest = await resumed(second, got, tone(1.0))
    assert acknowledged == len(tone(1.0))
    assert len(checked([*got, *rest])) == 1


async def test_of_two_callers_that_resume_a_session_at_once_one_completes_it(tmp_path: Path):
    data = speech(1.0, 1.0, 1.0, 1.0)

    async def outcome(served: Served) -> str:
        try:
            _, rest = await resumed(served, got, data)
        except grpc.aio.AioRpcError as error:
            return CallFailed.of(error).reason
        return " ".join(checked([*got, *rest]))

    async with two_servers(tmp_path) as (first, second):
        async with AsyncClient(second.target) as client:
            expected = " ".join(checked([one async for one in client.stream([data], CONTENTS["live"][1])]))
        call = first.transcription.StreamTranscribe()
        for request in [config(options={"language": "en", "word_timestamps": True}), *audio(data[:64_000])]:
            await call.write(request)
        got = await reads(call, is_kind("segment"))
        call.cancel()
        outcomes = await asyncio.gather(outcome(first), outcome(second))
    assert sorted(outcomes) == sorted([expected, "SESSION_TAKEN"])


async def test_a_server_without_the_store_still_ends_its_streams(tmp_path: Path):
    async with serving(ScriptedEngine(recognized), drain_timeout_s=4) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(speech(1.0, 1.0))]:
            await call.write(request)
        await reads(call, is_kind("segment"))
        stopping = asyncio.create_task(served.server.stop())
        got = await reads(call, is_kind("completed"))
        await stopping
    assert [event.warning.reason for event in got if event.HasField("warning")] == ["DRAINING"]
