"""A deploy: what a server that drains does with its streams, and what their callers lose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, Served, serving
from tests.relay import proxied
from tests.service.streams import (
    END,
    FINALIZE,
    audio,
    config,
    events,
    is_kind,
    kinds,
    reads,
    refused,
    seconds,
    texts,
)
from tests.service.test_stream_resume import RAW, checked, recognized
from tests.speech import BYTES_PER_S, cut, silence, speech, tone
from typeless_grpc.client import AsyncClient, CallFailed, Client, Item, Options, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1.transcription_pb2 import (
    SPEECH_ACTIVITY_TYPE_SPEECH_END,
    STREAM_END_REASON_CALLER,
    STREAM_END_REASON_DRAINING,
    STREAM_MODE_FILE,
    StreamTranscribeResponse,
)

TALK = speech(*(seconds for n in range(30) for seconds in (0.6 + n / 50, 0.9)))


async def talks(call: Any, pause_s: float, **fields: Any) -> list[StreamTranscribeResponse]:
    """All events of a caller that sends on and on, as one does who has not understood that the server is going."""

    async def send() -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for request in audio(TALK, 3200):
                await call.write(request)
                await asyncio.sleep(pause_s)

    await call.write(config(**fields))
    sending = asyncio.create_task(send())
    got = await reads(call, is_kind("completed"))
    sending.cancel()
    return got


async def finals(served: Served, data: bytes, **fields: Any) -> list[str]:
    """Of audio that its caller ended."""
    return texts(await events(served, [config(**fields), *audio(data), END]))


@pytest.mark.parametrize("fields", [{}, {"mode": STREAM_MODE_FILE}], ids=["live", "recordings"])
async def test_every_word_that_was_acknowledged_is_in_a_final_of_a_server_that_stops(fields: dict[str, Any]):
    engine = ScriptedEngine(recognized)
    async with serving(engine) as served, serving(ScriptedEngine(recognized)) as other:
        calls = [served.transcription.StreamTranscribe() for _ in range(8)]
        talking = [asyncio.create_task(talks(call, 0.002 + n / 2000, **fields)) for n, call in enumerate(calls)]
        await engine.until(n_calls=16 if not fields else 8)
        await asyncio.sleep(0.1)  # somewhere in the middle of the speech
        await served.server.stop()
        for got in await asyncio.gather(*talking):
            last = got[-1]
            assert last.completed.end_reason == STREAM_END_REASON_DRAINING
            assert 0 < last.acknowledged_bytes < len(TALK)
            assert [event.warning.reason for event in got if event.HasField("warning")] == ["DRAINING"]
            assert all(event.progress.fraction < 1 for event in got)
            assert texts(got) == await finals(other, TALK[: last.acknowledged_bytes], **fields)


async def test_audio_ends_where_the_speaker_pauses():
    async with (
        serving(ScriptedEngine(recognized), drain_timeout_s=20) as served,
        serving(ScriptedEngine(recognized)) as other,
    ):
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0))]:
            await call.write(request)
        await reads(call, is_kind("speech_activity"))
        stopping = asyncio.create_task(served.server.stop())
        got = await reads(call, is_kind("warning"))
        talk = speech(1.0, 1.0, 1.0)  # the word goes on; then a pause, and a word that is for the next server
        for request in audio(talk):
            await call.write(request)
        got += await reads(call, is_kind("completed"))
        await stopping
        assert texts(got) == await finals(other, tone(1.0) + talk[: 2 * BYTES_PER_S])
    assert 2 * BYTES_PER_S < got[-1].acknowledged_bytes < 3 * BYTES_PER_S


async def test_a_caller_that_ends_its_audio_meanwhile_has_ended_it():
    async with serving(ScriptedEngine(lambda call: "hello"), drain_timeout_s=20) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0))]:
            await call.write(request)
        await reads(call, is_kind("speech_activity"))
        stopping = asyncio.create_task(served.server.stop())
        await reads(call, is_kind("warning"))
        await call.write(END)
        got = await reads(call, is_kind("completed"))
        assert got[-1].completed.end_reason == STREAM_END_REASON_CALLER
        await stopping


async def test_a_session_whose_call_broke_is_waited_for_and_resumed_while_new_ones_are_refused():
    engine, talk = ScriptedEngine(lambda call: "hello"), tone(1.0)
    async with serving(engine, drain_timeout_s=60) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        got = await reads(call, is_kind("started"))
        engine.gate.clear()  # the speech is not decoded yet when the call breaks
        for request in [*audio(talk), FINALIZE]:
            await call.write(request)
        got += await reads(call, lambda event: event.speech_activity.type == SPEECH_ACTIVITY_TYPE_SPEECH_END)
        call.cancel()
        stopping = asyncio.create_task(served.server.stop())
        assert (await refused(served, [config()])).reason == "DRAINING"
        assert not stopping.done()
        again = served.transcription.StreamTranscribe()
        resume = config(format=None, resume_session_id=got[0].started.session_id, resume_after_sequence=len(got))
        for request in [resume, *audio(tone(1.0))]:  # what is sent on is read, and not taken
            await again.write(request)
        await reads(again, is_kind("started"))
        engine.gate.set()
        rest = await reads(again, is_kind("completed"))
        assert texts(rest) == ["hello"]
        assert rest[-1].acknowledged_bytes == len(talk)
        async with asyncio.timeout(30):
            await stopping


async def test_nobody_is_waited_for_longer_than_the_drain_time():
    async with serving(ScriptedEngine(lambda call: "hello"), drain_timeout_s=0.5) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0))]:
            await call.write(request)
        await reads(call, is_kind("speech_activity"))
        call.cancel()
        async with asyncio.timeout(30):
            await served.server.stop()


async def test_a_caller_that_does_not_read_does_not_keep_the_server():
    async with serving(ScriptedEngine(lambda call: "a" * 400_000), drain_timeout_s=0.5) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(speech(*[0.5, 0.8] * 10), 100_000)]:
            await call.write(request)
        async with asyncio.timeout(30):
            await served.server.stop()


async def test_a_stream_that_waits_for_its_model_is_refused_soon():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, drain_timeout_s=60) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        silent = served.transcription.StreamTranscribe()  # which never says what it is
        await engine.until(n_calls=1)
        async with asyncio.timeout(30):
            await served.server.stop()
        for one in (call, silent):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one.read()
            assert CallFailed.of(caught.value).reason == "DRAINING"


async def test_a_stream_that_never_sends_its_config_ends():
    async with serving(ScriptedEngine(), stream_idle_timeout_s=1.0) as served:
        failed = await refused(served, [])
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_IDLE")


# ---- the client ------------------------------------------------------------------------------------------------


async def played(stopping: asyncio.Event, n_bytes: int = 3201) -> AsyncIterator[Item]:
    """Speech in odd payloads; a server stops in the middle of it."""
    yield Options(language="fr")
    for n, payload in enumerate(cut(TALK, [n_bytes])):
        yield payload
        if n == 100:
            stopping.set()
        await asyncio.sleep(0.002 if n > 100 else 0)


@pytest.mark.parametrize("mode", ["live", "file"])
async def test_the_client_continues_on_another_server_and_its_caller_sees_one_session(mode: str):
    stopping = asyncio.Event()
    options = StreamOptions(Options(word_timestamps=True), RAW, mode=mode)
    async with serving(ScriptedEngine(recognized)) as first, serving(ScriptedEngine(recognized)) as second:
        async with proxied(first.target) as proxy, AsyncClient(proxy.target) as client:

            async def deploy() -> None:
                await stopping.wait()
                proxy.send_to(second.target)  # for the connections to come
                await first.server.stop()

            deploying = asyncio.create_task(deploy())
            got = [event async for event in client.stream(played(stopping), options)]
            await deploying
        segments = checked(got)
        whole = got[-1].completed.transcript
        assert got[-1].acknowledged_bytes == len(TALK)
        assert got[-1].completed.end_reason == STREAM_END_REASON_CALLER
        assert seconds(whole.audio_duration) == pytest.approx(len(TALK) / BYTES_PER_S)
        assert [segment.index for segment in whole.segments] == list(range(len(segments)))
        assert [event.segment for event in got if event.HasField("segment")] == list(whole.segments)
        assert whole.text == " ".join(segments)
        assert {segment.language for segment in whole.segments} == {"fr"}
        starts = [seconds(word.start_offset) for segment in whole.segments for word in segment.words]
        assert starts == sorted(starts)
        received = [seconds(event.cursors.received) for event in got]
        assert received == sorted(received)
        fractions = [event.progress.fraction for event in got if event.HasField("progress")]
        assert fractions == sorted(fractions)
        if mode == "live":
            assert len(segments) == 30
            speech = [seconds(event.speech_activity.offset) for event in got if event.HasField("speech_activity")]
            onsets = [sum(0.6 + n / 50 + 0.9 for n in range(k)) for k in range(30)]
            assert speech[::2] == pytest.approx(onsets, abs=0.1)


def test_the_client_for_threads_continues_on_another_server_too():
    async def main() -> list[StreamTranscribeResponse]:
        async with (
            serving(ScriptedEngine(recognized)) as first,
            serving(ScriptedEngine(recognized)) as second,
            proxied(first.target) as proxy,
        ):
            loop, is_under_way = asyncio.get_running_loop(), asyncio.Event()

            def source() -> Iterator[bytes]:
                for n, payload in enumerate(cut(TALK, [3200])):
                    if n == 100:
                        loop.call_soon_threadsafe(is_under_way.set)
                    yield payload

            def use() -> list[StreamTranscribeResponse]:
                with Client(proxy.target) as client:
                    return list(client.stream(source(), StreamOptions(raw_format=RAW)))

            using = asyncio.create_task(asyncio.to_thread(use))
            await is_under_way.wait()
            proxy.send_to(second.target)
            await first.server.stop()
            return await using

    got = asyncio.run(main())
    assert len(checked(got)) == 30
    assert got[-1].acknowledged_bytes == len(TALK)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(StreamOptions(), id="a container cannot be cut"),
        pytest.param(StreamOptions(raw_format=RAW, reconnect=False), id="not wanted"),
        pytest.param(StreamOptions(Options(output_formats=["srt"]), RAW), id="a file of both parts"),
    ],
)
async def test_a_stream_that_cannot_continue_fails_after_its_last_event(options: StreamOptions):
    data = TALK if options.raw_format else (AUDIO / "en_short.wav").read_bytes()[:44] + silence(1.0)
    async with serving(ScriptedEngine(recognized)) as served, AsyncClient(served.target) as client:

        async def source() -> AsyncIterator[bytes]:
            for payload in cut(data, [32_000]):
                yield payload
                await asyncio.sleep(0.01)
            await asyncio.Event().wait()  # more would follow

        got: list[StreamTranscribeResponse] = []
        stopping: list[asyncio.Task[None]] = []

        async def use() -> None:
            async for event in client.stream(source(), options):
                got.append(event)
                if not stopping:
                    await asyncio.sleep(0.2)
                    stopping.append(asyncio.create_task(served.server.stop()))

        with pytest.raises(CallFailed, match=r"took \d+ bytes") as caught:
            await use()
        assert caught.value.reason == "DRAINING"
        assert kinds(got)[-1] == "completed"
        await stopping[0]
