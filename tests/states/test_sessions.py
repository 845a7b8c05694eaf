"""The sessions of a server beside a list: opened, left, resumed, taken over, limited, expired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.states.machines import CountedMachine, check, finds
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput, NotFound, Overloaded, RateLimited, WrongState
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Entry
from typeless_grpc.streaming.requests import Control
from typeless_grpc.streaming.resume import Call, SessionLimits, Sessions

N_EXAMPLES = 40
WINDOW_S = 60.0
LIMITS = SessionLimits(resume_window_s=WINDOW_S, max_streams=3, max_streams_per_caller=2, max_kept=2)
RAW = AudioFormat(Encoding.PCM_S16LE, 16_000)
NUMBERS = st.integers(0, 5)


@dataclass(eq=False)
class KnownSession:
    """The reference. call: the one that has it. n_bytes: taken from all its calls. last: sequence that was read."""

    caller: str
    call: Call[str] | None
    session_id: str
    n_bytes: int = 0
    left_s: float = 0.0
    last: int = 0
    has_ended: bool = False


class SessionsOfAServer(CountedMachine):
    """Sessions of two callers."""

    sessions_class: type[Sessions[str]] = Sessions

    def __init__(self) -> None:
        super().__init__()
        self.sessions = self.run(self.made())
        self.known: list[KnownSession] = []
        self.old_calls: list[Call[str]] = []

    async def made(self) -> Sessions[str]:
        return self.sessions_class(LIMITS, self.loop)

    def stream(self) -> Stream:
        threads: Any = None
        dependencies = Dependencies(ScriptedEngine(), LoudnessDetector(), threads, self.loop)
        options = StreamOptions(DecodeOptions(), EndpointOptions(), idle_timeout_s=1e9)
        return Stream(dependencies, live_reader(RAW, field="config"), options)

    @initialize()
    def begin(self) -> None:
        self.open("a")

    @rule(caller=st.sampled_from("ab"))
    def open(self, caller: str) -> None:
        own = [one for one in self.known if one.caller == caller]
        left = [one for one in own if one.call is None]
        n_open = sum(one.call is not None for one in self.known)

        async def opened() -> Call[str]:
            return self.sessions.open(caller, caller, "config", self.stream)

        try:
            call = self.run(opened())
        except RateLimited:
            assert (len(own), left) == (LIMITS.max_streams_per_caller, [])
            return
        except Overloaded:
            assert n_open >= LIMITS.max_streams
            return
        assert n_open < LIMITS.max_streams
        if len(own) >= LIMITS.max_streams_per_caller:
            self.forget(left)
        assert not call.is_resumed
        self.known.append(KnownSession(caller, call, call.session_id))
        self.compare()

    @rule(n=NUMBERS, owner=st.sampled_from("ab"), after=st.sampled_from(["last", "last", "last", "beyond"]))
    @precondition(lambda self: self.known)
    def resume(self, n: int, owner: str, after: str) -> None:
        known = self.known[n % len(self.known)]
        n_open = sum(one.call is not None for one in self.known)
        newest = self.newest(known)

        async def resumed() -> Call[str]:
            return self.sessions.resume(known.session_id, owner, known.last if after == "last" else newest + 1)

        try:
            call = self.run(resumed())
        except NotFound:
            assert owner != known.caller
            return
        except InvalidInput:
            assert after == "beyond"
            return
        except Overloaded:
            assert known.call is None
            assert n_open >= LIMITS.max_streams
            return
        assert (owner, after) == (known.caller, "last")
        assert (call.is_resumed, call.acknowledged_bytes) == (True, known.n_bytes)
        if known.call is not None:
            self.old_calls.append(known.call)
        known.call = call
        self.compare()

    @rule(n=NUMBERS, n_samples=st.integers(1, 500))
    @precondition(lambda self: any(one.call for one in self.known))
    def put(self, n: int, n_samples: int) -> None:
        known = self.attached(n)
        assert known.call is not None
        self.run(known.call.put(bytes(2 * n_samples)))
        known.n_bytes += 2 * n_samples * (not known.has_ended)
        assert known.call.stream.acknowledged_bytes == known.n_bytes

    @rule(n=NUMBERS)
    @precondition(lambda self: any(one.call for one in self.known))
    def end_audio(self, n: int) -> None:
        known = self.attached(n)
        assert known.call is not None
        self.run(known.call.put(Control.END))
        self.run(asyncio.sleep(5.0))  # until it is completed
        known.has_ended = True

    @rule(n=NUMBERS)
    @precondition(lambda self: self.old_calls)
    def use_a_call_that_lost_its_session(self, n: int) -> None:
        """It changes nothing, and ends with SESSION_TAKEN; when it leaves, the session stays."""
        call = self.old_calls.pop(n % len(self.old_calls))
        self.run(call.put(b"lost"))

        async def read() -> None:
            async for _ in call.events_after(0):
                raise AssertionError("it gets no more events")

        with pytest.raises(WrongState) as caught:
            self.run(read())
        assert caught.value.reason == "SESSION_TAKEN"
        self.run(self.left(call))
        self.compare()

    @rule(n=NUMBERS)
    @precondition(lambda self: any(one.call for one in self.known))
    def read(self, n: int) -> None:
        """All events so far; none is missing or comes again."""
        known = self.attached(n)

        async def so_far() -> list[Entry]:
            assert known.call is not None
            newest, got = self.newest(known), list[Entry]()
            if newest > known.last:
                async for entry in known.call.events_after(known.last):
                    got.append(entry)
                    if entry.sequence >= newest:
                        break
            return got

        sequences = [entry.sequence for entry in self.run(so_far())]
        assert sequences == list(range(known.last + 1, known.last + 1 + len(sequences)))
        known.last += len(sequences)

    @rule(n=NUMBERS)
    @precondition(lambda self: any(one.call for one in self.known))
    def leave(self, n: int) -> None:
        known = self.attached(n)
        assert known.call is not None
        self.run(self.left(known.call))
        known.call, known.left_s = None, self.loop.now_s()
        kept = [one for one in self.known if one.call is None]
        if len(kept) > LIMITS.max_kept:
            self.forget(kept)
        self.compare()

    @rule(seconds=st.sampled_from([1.0, WINDOW_S * 0.6, WINDOW_S + 1.0]))
    def wait(self, seconds: float) -> None:
        async def pass_time() -> None:
            await asyncio.sleep(seconds)
            self.sessions.tick()

        self.run(pass_time())
        now_s = self.loop.now_s()
        self.known = [one for one in self.known if one.call is not None or now_s - one.left_s <= WINDOW_S]
        self.compare()

    def forget(self, candidates: list[KnownSession]) -> None:
        """One of these was dropped: a completed one, else the oldest."""
        dropped = min(candidates, key=lambda one: (not one.has_ended, one.left_s))
        self.known.remove(dropped)

    async def left(self, call: Call[str]) -> None:
        self.sessions.leave(call)

    def attached(self, n: int) -> KnownSession:
        with_call = [one for one in self.known if one.call is not None]
        return with_call[n % len(with_call)]

    def newest(self, known: KnownSession) -> int:
        stream = self.sessions.stream_of(known.session_id, known.caller)
        assert stream is not None
        return stream.journal.last_sequence

    def compare(self) -> None:
        assert len(self.sessions) == len(self.known)
        assert self.sessions.n_open == sum(one.call is not None for one in self.known)
        for one in self.known:
            assert self.sessions.stream_of(one.session_id, one.caller) is not None
            assert one.call is None or one.call.is_current

    def teardown(self) -> None:
        self.run(self.sessions.close())
        super().teardown()


class ForgetsOwners(Sessions[str]):
    def resume(self, session_id: str, owner: str, after_sequence: int) -> Call[str]:
        return super().resume(session_id, "a", after_sequence)


class NeverExpires(Sessions[str]):
    def tick(self) -> None:
        self.use(SessionLimits(1e9, 3, 2, 2))
        super().tick()


class EndsWhatAnotherCallHas(Sessions[str]):
    """When a call of an older generation leaves, its session goes with it."""

    def leave(self, call: Call[str]) -> None:
        super().leave(call)
        stream = self.stream_of(call.session_id, "a")
        if stream is not None and not call.is_current:
            self.adopt(call.session_id, "a", "a", call.config, stream)


def planted(fault: type[Sessions[str]]) -> Callable[[], SessionsOfAServer]:
    return type("Planted", (SessionsOfAServer,), {"sessions_class": fault})


def test_sessions_are_kept_for_those_who_may_resume_them():
    check(SessionsOfAServer, N_EXAMPLES)


@pytest.mark.parametrize("fault", [ForgetsOwners, NeverExpires, EndsWhatAnotherCallHas])
def test_a_planted_fault_of_sessions_is_found(fault: type[Sessions[str]]):
    finds(planted(fault), N_EXAMPLES)
