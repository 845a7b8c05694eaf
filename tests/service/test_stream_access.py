"""Access to streams, and what they are charged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest

from tests.harness import Served, serving
from tests.service.access import ADMIN, USER, guarded
from tests.service.streams import END, audio, config, is_kind, reads, refused, texts
from tests.service.test_access import new_key, revoke
from tests.speech import speech, tone
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import Overloaded
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest, TranscriptionOptions


def key(secret: str) -> tuple[tuple[str, str], ...]:
    return (("x-api-key", secret),)


async def opened(served: Served, secret: str) -> tuple[Any, str]:
    """A stream under a key, and its session."""
    call = served.transcription.StreamTranscribe(metadata=key(secret))
    await call.write(config())
    return call, (await call.read()).started.session_id


async def sent(call: Any, requests: Sequence[StreamTranscribeRequest]) -> None:
    """Send them, as far as the call lives."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for request in requests:
            await call.write(request)


@pytest.mark.parametrize("other", [ADMIN, ""], ids=["an admin's", "none"])
async def test_only_the_key_that_opened_a_session_can_resume_it(other):
    async with guarded(require_auth=False) as served:
        call, session = await opened(served, USER)
        call.cancel()
        resume = config(format=None, resume_session_id=session)
        for secret, is_found in ((other, False), (USER, True)):
            again = served.transcription.StreamTranscribe(metadata=key(secret) if secret else None)
            await again.write(resume)
            if is_found:
                assert (await again.read()).started.resumed
                again.cancel()
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await again.read()
                assert CallFailed.of(caught.value).reason == "SESSION_NOT_FOUND"


async def test_a_key_that_is_revoked_ends_its_stream():
    async with guarded(ScriptedEngine(lambda call: "hello")) as served:
        made = await new_key(served)
        call, _ = await opened(served, made.secret)
        await revoke(served, made.api_key.key_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    failed = CallFailed.of(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED")


async def test_streams_are_charged_for_arriving_audio_and_continue_once_there_is_quota():
    settings: dict[str, Any] = {"rate_limit_enabled": True, "rate_limit_audio": "2/second:5"}
    async with serving(ScriptedEngine(lambda call: "hello"), **settings) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        session = (await call.read()).started.session_id
        sending = asyncio.create_task(sent(call, [*audio(speech(1.0, 0.8, 6.0), 300_000), END]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reads(call, is_kind("completed"))
        await sending
        failed = CallFailed.of(caught.value)
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        at_once = await refused(served, [config(format=None, resume_session_id=session)])
        assert at_once.reason == "RATE_LIMITED"
        assert at_once.retry_after_s is not None
        await asyncio.sleep(at_once.retry_after_s)
        again = served.transcription.StreamTranscribe()
        await again.write(config(format=None, resume_session_id=session))
        assert texts(await reads(again, is_kind("completed"))) == ["hello", "hello"]


async def test_an_update_that_meets_a_full_engine_ends_the_call_and_not_the_session():
    answers = ["hello", Overloaded("The line is full."), "", "and more", "too", "much"]

    def script(call: EngineCall) -> str | BaseException:
        return answers.pop(0) if call.options.prompt or call.audio.any() else ""

    settings: dict[str, Any] = {"rate_limit_enabled": True, "rate_limit_audio": "1/hour:10"}
    update = StreamTranscribeRequest(update=TranscriptionOptions(prompt="Zelvari"))
    async with serving(ScriptedEngine(script), **settings) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        session = (await call.read()).started.session_id
        for request in audio(speech(3.0, 1.0)):
            await call.write(request)
        received = await reads(call, is_kind("segment"))
        await call.write(update)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reads(call, is_kind("completed"))
        assert CallFailed.of(caught.value).reason == "OVERLOADED"
        again = served.transcription.StreamTranscribe()
        await again.write(config(format=None, resume_session_id=session, resume_after_sequence=received[-1].sequence))
        for request in [update, *audio(speech(3.0, 1.0)), END]:
            await again.write(request)
        assert texts(await reads(again, is_kind("completed"))) == ["and more"]
        # What was worked on is not given back for the call's end: 8 of the 10 s are spent.
        third = served.transcription.StreamTranscribe()
        await third.write(config())
        sending = asyncio.create_task(sent(third, [*audio(speech(3.0, 1.0, 3.0, 1.0), 300_000), END]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reads(third, is_kind("completed"))
        await sending
        assert CallFailed.of(caught.value).reason == "RATE_LIMITED"


async def test_a_caller_over_its_streams_is_refused():
    async with serving(ScriptedEngine(), rate_limit_enabled=True, max_streams_per_caller=1) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        await call.read()
        failed = await refused(served, [config()])
        call.cancel()
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_drain_warns_open_streams_and_lets_them_finish():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        call = served.transcription.StreamTranscribe()
        for request in [config(), *audio(tone(1.0))]:
            await call.write(request)
        await reads(call, is_kind("speech_activity"))
        stopping = asyncio.create_task(served.server.stop())
        warning = (await reads(call, is_kind("warning")))[-1].warning
        assert (warning.reason, warning.code) == ("DRAINING", grpc.StatusCode.UNAVAILABLE.value[0])
        await call.write(END)
        assert texts(await reads(call, is_kind("completed"))) == ["hello"]
        assert await call.read() is grpc.aio.EOF
        await stopping


async def test_a_server_that_holds_as_much_audio_as_it_may_takes_no_new_stream_and_finishes_those_it_has():
    engine = ScriptedEngine(lambda call: "hello")
    async with serving(engine, max_held_audio_s=4.0, stream_resume_window_s=600) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config())
        session = (await reads(call, is_kind("started")))[0].started.session_id
        engine.gate.clear()
        sending = asyncio.create_task(sent(call, audio(speech(*[2.0, 1.0] * 10), 32_000)))
        await engine.until(n_calls=2)
        call.cancel()  # a session that waits to be resumed holds what it holds
        await sending
        failed = await maybe_opened(served)
        assert failed is not None
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert failed.retry_after_s is not None
        engine.gate.set()
        again = served.transcription.StreamTranscribe()
        for request in [config(format=None, resume_session_id=session), END]:
            await again.write(request)
        assert texts(await reads(again, is_kind("completed")))
        assert await maybe_opened(served) is None


async def maybe_opened(served: Served) -> CallFailed | None:
    """What keeps a stream from being opened."""
    call = served.transcription.StreamTranscribe()
    try:
        await call.write(config())
        await call.read()
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error)
    call.cancel()
    return None
