"""Streams whose connections break: what the server keeps, and what the client makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random

import grpc
import pytest

from tests.harness import serving
from tests.relay import proxied
from tests.service.streams import END, audio, config, is_kind, kinds, reads, refused, texts
from tests.speech import cut, samples_as_text, speech, tone
from typeless_grpc.client import AsyncClient, CallFailed, Client, Control, Options, RawFormat, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse

RAW = RawFormat("pcm_s16le", 16_000)


def recognized(requested) -> str:
    """Words that depend on the samples, so that lost or repeated audio shows."""
    return samples_as_text(requested)


DATA = speech(*(seconds for _ in range(6) for seconds in (0.7, 0.9)))


async def paced(pause_s: float = 0.0, n_bytes: int = 3200) -> AsyncIterator[bytes]:
    for payload in cut(DATA, [n_bytes]):
        yield payload
        await asyncio.sleep(pause_s)


async def test_every_later_event_comes_exactly_once():
    async with serving(ScriptedEngine(recognized)) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        got = await reads(call, is_kind("started"))
        for request in audio(speech(0.7, 0.9, 0.7, 0.9)):
            await call.write(request)
        for _ in range(2):
            got += await reads(call, is_kind("segment"))
        call.cancel()
        session = got[0].started.session_id
        for after in range(len(got) + 1):
            again = served.transcription.StreamTranscribe()
            await again.write(config(format=None, resume_session_id=session, resume_after_sequence=after))
            resumed = await again.read()
            assert resumed.started.resumed
            assert (resumed.sequence, resumed.acknowledged_bytes) == (0, len(speech(0.7, 0.9, 0.7, 0.9)))
            repeated = [await again.read() for _ in range(max(after, 1), len(got))]
            assert all(one.acknowledged_bytes == resumed.acknowledged_bytes for one in repeated)  # never less again
            for one, before in zip(repeated, got[max(after, 1) :], strict=True):
                one.acknowledged_bytes = before.acknowledged_bytes
                assert one == before
            again.cancel()


async def test_a_finished_session_still_reports_how_it_ended():
    async with serving(ScriptedEngine(recognized)) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0)), END]:
            await call.write(request)
        got = await reads(call, is_kind("completed"))
        again = served.transcription.StreamTranscribe()
        resume = config(format=None, resume_session_id=got[0].started.session_id, resume_after_sequence=len(got) - 1)
        await again.write(resume)
        assert kinds(await reads(again, is_kind("completed"))) == ["started", "completed"]


async def test_the_newest_call_has_the_session():
    async with serving(ScriptedEngine(recognized)) as served:
        old = served.transcription.StreamTranscribe()
        await old.write(config())
        started = await old.read()
        new = served.transcription.StreamTranscribe()
        await new.write(config(format=None, resume_session_id=started.started.session_id, resume_after_sequence=1))
        assert (await new.read()).started.resumed
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await old.read()
        assert CallFailed.of(caught.value).reason == "SESSION_TAKEN"
        for request in [*audio(tone(1.0)), END]:
            await new.write(request)
        assert len(texts(await reads(new, is_kind("completed")))) == 1


async def test_a_session_is_dropped_after_its_resume_window():
    async with serving(ScriptedEngine(recognized), stream_resume_window_s=0) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        session = (await call.read()).started.session_id
        call.cancel()

        async def resume_again_and_again() -> None:
            while True:  # until the server has noticed
                again = served.transcription.StreamTranscribe()
                await again.write(config(format=None, resume_session_id=session))
                await again.read()
                again.cancel()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await resume_again_and_again()
    assert CallFailed.of(caught.value).reason == "SESSION_NOT_FOUND"


@pytest.mark.parametrize("session", ["x", "AAAAAAAAAAAAAAAAAAAAAA"])
async def test_an_unknown_session_is_not_found(session):
    async with serving(ScriptedEngine()) as served:
        failed = await refused(served, [config(format=None, resume_session_id=session)])
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_a_sequence_that_never_was_is_refused():
    async with serving(ScriptedEngine()) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        session = (await call.read()).started.session_id
        failed = await refused(served, [config(format=None, resume_session_id=session, resume_after_sequence=9)])
        call.cancel()
    assert [path for path, _ in failed.fields] == ["config.resume_after_sequence"]


# ---- the client ------------------------------------------------------------------------------------------------


def checked(responses: list[StreamTranscribeResponse]) -> list[str]:
    """The finals of one uninterrupted sequence of events."""
    assert [response.sequence for response in responses] == list(range(1, len(responses) + 1))
    assert kinds(responses)[0] == "started"
    assert kinds(responses)[-1] == "completed"
    finals = texts(responses)
    assert [segment.text for segment in responses[-1].completed.transcript.segments] == finals
    return finals


@pytest.mark.timeout(120)
async def test_fifty_cuts_at_random_moments_change_nothing():
    options = StreamOptions(raw_format=RAW)
    async with serving(ScriptedEngine(recognized)) as served, proxied(served.target) as proxy:
        async with AsyncClient(served.target) as client:
            whole = checked([event async for event in client.stream(paced(), options)])
        assert len(whole) == 6
        random = Random(4)
        n_cuts = 0
        while n_cuts < 50:
            async with AsyncClient(proxy.target) as client:
                stream = client.stream(paced(0.002), options)
                n_left = 10

                async def break_it() -> None:
                    nonlocal n_cuts, n_left
                    while n_left:
                        await asyncio.sleep(random.uniform(0.01, 0.2))
                        proxy.cut()
                        n_cuts, n_left = n_cuts + 1, n_left - 1

                breaking = asyncio.create_task(break_it())
                got = [event async for event in stream]
                breaking.cancel()
                assert checked(got) == whole
        assert proxy.n_connections > 25


async def test_a_stream_outlives_the_age_of_its_connection():
    options = StreamOptions(raw_format=RAW)
    settings = {"max_connection_age_s": 1, "max_call_s": 1}
    async with serving(ScriptedEngine(recognized)) as served, AsyncClient(served.target) as client:
        whole = checked([event async for event in client.stream(paced(), options)])
    async with serving(ScriptedEngine(recognized), **settings) as served, proxied(served.target) as proxy:
        async with AsyncClient(proxy.target) as client:
            got = [event async for event in client.stream(paced(0.04), options)]
        assert proxy.n_connections > 1
    assert checked(got) == whole


async def test_controls_and_updates_survive_a_cut_too():
    async with serving(ScriptedEngine(recognized)) as served, proxied(served.target) as proxy:
        at = asyncio.Event()

        async def source() -> AsyncIterator[bytes | Control | Options]:
            yield tone(1.0)
            yield Control.FINALIZE
            yield Options(language="fr")
            proxy.cut()
            yield tone(1.0)
            await at.wait()
            yield Control.KEEP_ALIVE
            yield tone(0.5)

        async with AsyncClient(proxy.target) as client:
            got = []
            async for event in client.stream(source(), StreamOptions(Options(language="en"), RAW)):
                got.append(event)
                if event.HasField("segment") and not at.is_set():
                    proxy.cut()
                    at.set()
    assert [event.segment.language for event in got if event.HasField("segment")] == ["en", "fr"]
    assert checked(got)


def test_threads_can_stream_too():
    """In a thread's loop of its own, as the client here is the one without a loop."""

    async def main() -> list[list[str]]:
        async with serving(ScriptedEngine(recognized)) as served, proxied(served.target) as proxy:

            def use(target: str, *, cuts: int) -> list[str]:
                left = iter(range(cuts))

                def source() -> Iterator[bytes]:
                    for index, payload in enumerate(cut(DATA, [3200])):
                        if index % 20 == 19 and next(left, None) is not None:
                            loop.call_soon_threadsafe(proxy.cut)
                        yield payload

                with Client(target) as client:
                    return checked(list(client.stream(source(), StreamOptions(raw_format=RAW))))

            loop = asyncio.get_running_loop()
            return [
                await asyncio.to_thread(use, served.target, cuts=0),
                await asyncio.to_thread(use, proxy.target, cuts=5),
            ]

    whole, broken = asyncio.run(main())
    assert whole == broken
    assert len(whole) == 6


async def test_a_refusal_of_the_server_is_raised_and_not_retried():
    engine = ScriptedEngine()
    async with serving(engine) as served, AsyncClient(served.target) as client:
        with pytest.raises(CallFailed) as caught:
            [event async for event in client.stream([b"garbage" * 20_000])]
        assert caught.value.reason == "AUDIO_UNDECODABLE"


async def test_an_absent_server_is_reported_soon():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(CallFailed) as caught:
            [event async for event in client.stream(paced(), StreamOptions(raw_format=RAW))]
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_an_exception_of_the_audio_source_is_raised_to_the_caller():
    async def source() -> AsyncIterator[bytes]:
        yield tone(0.5)
        raise OSError("the microphone was unplugged")

    async with serving(ScriptedEngine()) as served, AsyncClient(served.target) as client:
        with pytest.raises(OSError, match="microphone"):
            [event async for event in client.stream(source(), StreamOptions(raw_format=RAW))]


async def test_the_client_requests_an_acknowledgement_in_a_long_silence(monkeypatch):
    from typeless_grpc.client.ledger import Ledger

    monkeypatch.setattr(Ledger, "PROBE_AFTER_BYTES", 100_000)
    options = StreamOptions(raw_format=RAW, max_kept_bytes=300_000)
    async with serving(ScriptedEngine()) as served, AsyncClient(served.target) as client:
        got = [event async for event in client.stream([bytes(20_000)] * 50, options)]
    assert kinds(got) == ["started", "completed"]
    assert got[-1].acknowledged_bytes == 1_000_000
