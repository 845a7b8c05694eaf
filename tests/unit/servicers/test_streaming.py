"""The servicer of streams, without a server: calls that end at an awkward moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.service.streams import config
from tests.speech import tone
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.streams import open_streams
from typeless_grpc.audio.decoders import IN_PROCESS
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1.transcription_pb2 import StreamConfig, StreamTranscribeRequest
from typeless_grpc.streaming.dependencies import Dependencies


@pytest.mark.parametrize("is_resumable", [True, False])
async def test_a_call_that_is_cancelled_while_it_ends_leaves_its_session(is_resumable: bool):
    is_ending, goes_on = asyncio.Event(), asyncio.Event()

    async def requests() -> AsyncIterator[StreamTranscribeRequest]:
        yield config()
        try:
            await asyncio.Event().wait()
        finally:
            is_ending.set()
            await goes_on.wait()

    settings = Settings()
    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(ScriptedEngine(), LoudnessDetector(), threads, SystemClock())
        async with open_streams(settings, dependencies, Reloads(settings), IN_PROCESS) as service:
            responses = service.responses(requests(), is_resumable=is_resumable)
            assert (await anext(responses)).HasField("started")
            assert service.n_open == 1
            ending = asyncio.create_task(responses.aclose())
            await is_ending.wait()
            ending.cancel()
            with suppress(asyncio.CancelledError):
                await ending
            assert service.n_open == 0
            goes_on.set()


async def test_what_started_has_acknowledged_stays_so_in_events_that_are_sent_again():
    is_found, is_taken = asyncio.Event(), asyncio.Event()

    async def requests() -> AsyncIterator[StreamTranscribeRequest]:
        yield config()
        yield StreamTranscribeRequest(audio=tone(0.5))
        await is_found.wait()
        yield StreamTranscribeRequest(audio=tone(0.5))
        is_taken.set()
        await asyncio.Event().wait()

    async def resume(session_id: str) -> AsyncIterator[StreamTranscribeRequest]:
        yield StreamTranscribeRequest(config=StreamConfig(resume_session_id=session_id))
        await asyncio.Event().wait()

    settings = Settings()
    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(ScriptedEngine(), LoudnessDetector(), threads, SystemClock())
        async with open_streams(settings, dependencies, Reloads(settings), IN_PROCESS) as service:
            responses = service.responses(requests())
            started = (await anext(responses)).started
            assert (await anext(responses)).HasField("speech_activity")
            is_found.set()
            await is_taken.wait()
            await responses.aclose()
            resumed = service.responses(resume(started.session_id))
            messages = [await anext(resumed), await anext(resumed)]
            await resumed.aclose()
    assert messages[1].HasField("speech_activity")
    assert [message.acknowledged_bytes for message in messages] == [32_000, 32_000]
