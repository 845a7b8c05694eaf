"""Sessions by name: who may have them, how many there may be, and for how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput, NotFound, Overloaded, RateLimited, WrongState
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Started, Warned
from typeless_grpc.streaming.requests import Control
from typeless_grpc.streaming.resume import Call, SessionLimits, Sessions


class Desk:
    """Sessions, and the means to open more. threads: the one in which longer audio is detected."""

    def __init__(
        self, sessions: Sessions[str], clock: FakeClock, threads: Executor, stream: Callable[[], Stream]
    ) -> None:
        self.sessions, self.clock, self.threads, self._stream = sessions, clock, threads, stream

    def open(self, caller: str = "a", owner: str | None = None, *, is_shared: bool = False) -> Call[str]:
        whose = owner if owner is not None else caller
        return self.sessions.open(caller, whose, "config", self._stream, is_shared=is_shared)

    def resume(self, call: Call[str], owner: str = "a", after: int = 0) -> Call[str]:
        return self.sessions.resume(call.session_id, owner, after)


@asynccontextmanager
async def desk(**limits: Any) -> AsyncIterator[Desk]:
    clock = FakeClock()
    sessions: Sessions[str] = Sessions(SessionLimits(**limits), clock)
    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(ScriptedEngine(), LoudnessDetector(), threads, clock)
        options = StreamOptions(DecodeOptions(), EndpointOptions())
        raw = AudioFormat(Encoding.PCM_S16LE, 16_000)
        yield Desk(sessions, clock, threads, lambda: Stream(dependencies, live_reader(raw, field="config"), options))
        await sessions.close()


async def test_only_its_owner_can_resume_a_session():
    async with desk() as d:
        call = d.open()
        await call.put(b"12345678")
        d.sessions.leave(call)
        with pytest.raises(NotFound) as caught:
            d.resume(call, owner="b")
        assert caught.value.reason == "SESSION_NOT_FOUND"
        again = d.resume(call)
        assert (again.is_resumed, again.acknowledged_bytes, again.config) == (True, 8, "config")


async def test_session_ids_are_unpredictable():
    async with desk() as d:
        assert len({d.open(str(n)).session_id for n in range(100)}) == 100
        assert len(d.open().session_id) >= 22  # 128 bits


async def test_a_session_is_kept_for_its_window():
    async with desk(resume_window_s=60.0) as d:
        call = d.open()
        d.sessions.leave(call)
        d.clock.advance(60)
        d.sessions.tick()
        again = d.resume(call)
        d.clock.advance(1000)  # one that has a call stays
        d.sessions.tick()
        d.sessions.leave(again)
        d.clock.advance(61)
        d.sessions.tick()
        with pytest.raises(NotFound):
            d.resume(call)


async def test_the_older_call_loses_the_session_and_adds_nothing_more():
    async with desk() as d:
        old = d.open()
        new = d.resume(old)
        await old.put(b"lost")
        assert new.stream.acknowledged_bytes == 0
        with pytest.raises(WrongState) as caught:
            await anext(old.events_after(0))
        assert caught.value.reason == "SESSION_TAKEN"
        d.sessions.leave(old)
        d.clock.advance(1000)
        d.sessions.tick()
        assert len(d.sessions) == 1
        assert new.is_current


async def test_a_call_whose_caller_does_not_read_is_cut_and_its_session_kept():
    async with desk() as d:
        held: list[Call[str]] = []

        async def handler() -> None:
            held.append(d.open())
            async for _ in held[0].events_after(0):
                await asyncio.Event().wait()  # as a write does whose window is full

        task = asyncio.create_task(handler())
        await until_idle()
        d.clock.advance(59)
        d.sessions.tick()
        d.clock.advance(2)
        d.sessions.tick()
        with pytest.raises(asyncio.CancelledError):
            await task
        d.sessions.leave(held[0])
        assert d.resume(held[0]).is_resumed


async def test_a_waiting_request_of_an_older_call_is_not_taken():
    async with desk() as d:
        is_resumed = threading.Event()
        d.threads.submit(is_resumed.wait)  # no audio is worked on before, so the inbox stays full
        old = d.open()
        await old.put(bytes(2 << 20))
        waiting = asyncio.create_task(old.put(b"more"))
        await until_idle()
        new = d.resume(old)
        is_resumed.set()
        await waiting
        assert new.acknowledged_bytes == new.stream.acknowledged_bytes == 2 << 20


@pytest.mark.parametrize("after", [-1, 2])
async def test_a_sequence_that_never_was_is_refused(after):
    async with desk() as d:
        call = d.open()
        with pytest.raises(InvalidInput):
            d.resume(call, after=after)
        assert call.is_current


async def test_the_streams_of_a_caller_are_bounded():
    async with desk(max_streams_per_caller=2) as d:
        first, _ = d.open(), d.open()
        with pytest.raises(RateLimited) as caught:
            d.open()
        assert caught.value.reason == "TOO_MANY_STREAMS"
        d.open("b")
        d.sessions.leave(first)  # a broken one is closed
        d.open()
        with pytest.raises(NotFound):
            d.resume(first)


async def test_callers_behind_one_address_do_not_end_each_others_sessions():
    async with desk(max_streams_per_caller=1) as d:
        broken = d.open()
        await broken.put(bytes(3200))
        d.sessions.leave(broken)
        with pytest.raises(RateLimited) as caught:
            d.open(is_shared=True)
        assert caught.value.reason == "TOO_MANY_STREAMS"
        again = d.resume(broken)
        await again.put(Control.END)
        assert [entry async for entry in again.events_after(0)]
        d.sessions.leave(again)
        d.open(is_shared=True)  # nobody has to come back for what is delivered


async def test_a_completed_session_is_dropped_before_a_broken_one():
    async with desk(max_streams_per_caller=2) as d:
        broken, complete = d.open(), d.open()
        d.sessions.leave(broken)
        await complete.put(Control.END)
        assert [entry async for entry in complete.events_after(0)]
        d.clock.advance(1)
        d.sessions.leave(complete)
        d.open()
        assert d.resume(broken).is_resumed
        with pytest.raises(NotFound):
            d.resume(complete)


async def test_the_streams_of_a_server_are_bounded():
    async with desk(max_streams=2) as d:
        first, _ = d.open("a"), d.open("b")
        with pytest.raises(Overloaded):
            d.open("c")
        d.sessions.leave(first)
        d.open("c")
        with pytest.raises(Overloaded):
            d.resume(first)


async def test_no_session_is_dropped_for_a_refused_one():
    async with desk(max_streams=1, max_streams_per_caller=1) as d:
        broken = d.open("a")
        d.sessions.leave(broken)
        other = d.open("b")
        with pytest.raises(Overloaded):
            d.open("a")
        d.sessions.leave(other)
        assert d.resume(broken).is_resumed


async def test_the_oldest_of_too_many_kept_sessions_is_dropped():
    async with desk(max_kept=2) as d:
        calls = [d.open(str(n)) for n in range(3)]
        for call in calls:
            d.sessions.leave(call)
            d.clock.advance(1)
        assert len(d.sessions) == 2
        with pytest.raises(NotFound):
            d.resume(calls[0], owner="0")


async def test_a_resumed_session_returns_the_error_that_ended_it():
    async with desk() as d:
        call = d.open()
        error = InvalidInput("config", "comes first and only once", reason="STREAM_ORDER")
        call.stream.fail(error)
        d.sessions.leave(call)
        events = d.resume(call).events_after(1)
        with pytest.raises(InvalidInput) as caught:
            await anext(events)
        assert caught.value is error


async def test_a_drain_waits_for_sessions_whose_call_broke_until_they_are_delivered():
    async with desk() as d:
        broken, empty = d.open(), d.open()
        for call in (broken, empty):
            d.sessions.leave(call)
        await d.resume(broken).put(bytes(3200))
        d.sessions.leave(d.resume(broken))
        d.sessions.drain(Overloaded("The server stops.", reason="DRAINING"), 5.0)
        waiting = asyncio.create_task(d.sessions.drained())
        d.sessions.tick()
        await until_idle()
        assert not waiting.done()
        again = d.resume(broken)
        received = [entry.event async for entry in again.events_after(0)]
        assert [type(event) for event in received] == [Started, Warned, Completed]
        d.sessions.leave(again)
        d.sessions.tick()
        await asyncio.wait_for(waiting, 30)


async def test_a_drain_does_not_wait_for_a_session_past_its_window():
    async with desk(resume_window_s=60.0) as d:
        call = d.open()
        await call.put(bytes(3200))
        d.sessions.leave(call)
        d.sessions.drain(Overloaded("The server stops.", reason="DRAINING"), 5.0)
        waiting = asyncio.create_task(d.sessions.drained())
        d.clock.advance(61)
        await until_idle()
        d.sessions.tick()
        await asyncio.wait_for(waiting, 30)


async def test_sessions_report_whether_they_are_ticked():
    async with desk() as d:
        assert not d.sessions.is_ticking
        running = asyncio.create_task(d.sessions.run())
        await until_idle()
        assert d.sessions.is_ticking
        running.cancel()
        await asyncio.wait([running])
        assert not d.sessions.is_ticking


async def test_a_dropped_session_stops_its_work():
    async with desk(max_kept=0) as d:
        call = d.open()
        d.sessions.leave(call)
        await d.sessions.close()
        assert call.stream.journal.is_closed
        await call.put(Control.END)  # and takes nothing more
