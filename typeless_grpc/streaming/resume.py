"""The sessions of a server, by id: how many there may be, and how long one is kept after its call broke.

The caller that opened a session can resume it, even while its old call still seems to be open: a client often notices a
broken connection before the server. The newest call has the session; the older one ends with SESSION_TAKEN.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.errors import InvalidInput, NotFound, Overloaded, RateLimited, TypelessError, WrongState
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.durable_stream import DurableStream
from typeless_grpc.streaming.events import EndReason, Entry
from typeless_grpc.streaming.observer import NoStreamObserver, StreamObserver
from typeless_grpc.streaming.requests import Request

_TICKS_PER_S = 4
# For a caller to read the last events of a session that is handed over; it can read them on the next server, too.
_LAST_EVENTS_S = 2.0

C = TypeVar("C")


@dataclass(frozen=True)
class SessionLimits:
    """resume_window_s: how long a session without a call is kept. max_streams: sessions with a call, of all callers.

    max_streams_per_caller: sessions of one caller. max_kept: sessions without a call, of all callers; beyond it,
    completed sessions are dropped first, then the oldest.
    """

    resume_window_s: float = 60.0
    max_streams: int = 256
    max_streams_per_caller: int = 10
    max_kept: int = 256


@dataclass
class _Held(Generic[C]):
    """A session of `Sessions`, with or without a call.

    call: the one that has it now; None within the resume window. left_s: when the last call left. is_handed_over:
    another server continues it, and nothing is left to do here.
    """

    id: str
    caller: str
    owner: str
    config: C
    stream: Stream
    call: Call[C] | None = None
    left_s: float = 0.0
    is_handed_over: bool = False


class Call(Generic[C]):
    """One call's access to a session. config: the configuration with which the session was opened."""

    def __init__(self, held: _Held[C], *, resumed: bool) -> None:
        self._held = held
        self._error: BaseException | None = None
        self.session_id, self.config = held.id, held.config
        self._task = asyncio.current_task()
        self.is_resumed = resumed
        self.acknowledged_bytes = held.stream.acknowledged_bytes  # at this moment; no older call adds to it
        self.has_ended = held.stream.end_reason is EndReason.CALLER and held.stream.is_acknowledged

    @property
    def stream(self) -> Stream:
        """The session's stream."""
        return self._held.stream

    @property
    def is_current(self) -> bool:
        """Whether no other call has resumed the session."""
        return self._held.call is self and self._error is None

    @property
    def charged_s(self) -> float:
        """Seconds of audio for which the session's calls were charged."""
        return self._held.stream.meter.charged_s

    @charged_s.setter
    def charged_s(self, seconds: float) -> None:
        self._held.stream.meter.charged_s = seconds

    async def put(self, request: Request) -> None:
        """Pass a request to the stream, unless another call has the session by now."""
        await self._held.stream.put(request, still_wanted=lambda: self.is_current)

    def events_after(self, sequence: int) -> AsyncGenerator[Entry, None]:
        """Yield the session's events. Raises the error of `fail` at once, and the stream's after its last event."""
        return self._held.stream.events_after(sequence, lambda: self._error)

    def cut(self) -> None:
        """End the call as if its connection had broken, because its caller does not read."""
        if self._task is not None:
            self._task.cancel()

    def fail(self, error: BaseException) -> None:
        """End the call with error, once."""
        if self._error is None:
            self._error = error
            self._held.stream.wake()


class Sessions(Generic[C]):
    """All sessions of this server, each with the configuration (C) with which it was opened.

    `tick` must be called a few times a second, by `run` or by a test. is_ticking: whether `run` does.
    """

    def __init__(self, limits: SessionLimits, clock: Clock, observer: StreamObserver | None = None) -> None:
        self._limits, self._clock = limits, clock
        self._observer = observer or NoStreamObserver()
        self._held: dict[str, _Held[C]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ticked = asyncio.Event()
        self.is_draining = self.is_ticking = False

    def use(self, limits: SessionLimits) -> None:
        """Apply these limits from now on. Only sessions without a call end because of them."""
        self._limits = limits

    def __len__(self) -> int:
        return len(self._held)

    @property
    def n_open(self) -> int:
        """How many sessions a call has."""
        return sum(held.call is not None for held in self._held.values())

    def open(
        self,
        caller: str,
        owner: str,
        config: C,
        stream: Callable[[], Stream],
        *,
        is_shared: bool = False,
        session_id: str = "",
    ) -> Call[C]:
        """Open a session. caller: it counts against this caller's streams; owner: who may resume it.

        is_shared: several callers may share this address, so a new session must not end one that can be resumed.
        session_id: from `new_session_id`; a new one unless given. Raises RateLimited (TOO_MANY_STREAMS) and Overloaded.
        """
        self._make_room(caller, is_shared=is_shared)
        held = _Held(session_id or new_session_id(), caller, owner, config, stream())
        self._held[held.id] = held
        return self._attached(held, resumed=False)

    def stream_of(self, session_id: str, owner: str) -> Stream | None:
        """Return the stream of a session that is here; None if owner has none of this id here."""
        held = self._held.get(session_id)
        return held.stream if held is not None and held.owner == owner else None

    def adopt(self, session_id: str, caller: str, owner: str, config: C, stream: Stream) -> None:
        """Keep a session that another server had, to be resumed next; it replaces an older copy."""
        if (older := self._held.get(session_id)) is not None:
            self._end_lost(older)
        self._held[session_id] = _Held(session_id, caller, owner, config, stream, left_s=self._clock.now_s())
        stream.detach()

    def resume(self, session_id: str, owner: str, after_sequence: int) -> Call[C]:
        """Resume a session. Raises NotFound if owner has none of this id, InvalidInput, and Overloaded."""
        held = self._held.get(session_id)
        if held is None or held.owner != owner:
            message = "There is no such session. A session can be resumed for a short time only."
            raise NotFound(message, reason="SESSION_NOT_FOUND")
        if not 0 <= after_sequence <= held.stream.journal.last_sequence:
            why = f"the session is at event {held.stream.journal.last_sequence}"
            raise InvalidInput("config.resume_after_sequence", why)
        if held.call is not None:
            held.call.fail(taken_error())
        else:
            self.check_capacity()
        return self._attached(held, resumed=True)

    def leave(self, call: Call[C]) -> None:
        """Detach a call that is over. Its session is kept for the resume window, unless another call has it."""
        held = self._held.get(call.session_id)
        if held is None or held.call is not call:
            return
        held.call, held.left_s = None, self._clock.now_s()
        held.stream.detach()
        if held.is_handed_over:
            self._drop(held)
            return
        kept = [other for other in self._held.values() if other.call is None]
        if len(kept) > self._limits.max_kept:
            self._evict(kept)

    def end(self, call: Call[C]) -> None:
        """End the session of a call that is over, because its caller cannot resume it."""
        held = self._held.get(call.session_id)
        if held is not None and held.call is call:
            self._drop(held)

    def drain(self, error: TypelessError, within_s: float) -> None:
        """Hand durable sessions over, and end the audio of others, at the next pause, at the latest after within_s.

        error: a warning to the callers whose audio ends.
        """
        self.is_draining = True
        for held in list(self._held.values()):
            if isinstance(held.stream, DurableStream):
                self._start(self._hand_over(held, held.stream, within_s))
            else:
                held.stream.warn(error)
                held.stream.drain(within_s)

    async def drained(self) -> None:
        """Wait until every session without a call is handed over, or has delivered its events to a caller.

        A session that took no audio loses nothing, and is not waited for.
        """
        while any(_is_waited_for(held) for held in self._held.values()):
            self._ticked.clear()
            await self._ticked.wait()

    def tick(self) -> None:
        """Tick every stream, and drop the sessions whose resume window is over."""
        now_s = self._clock.now_s()
        for held in list(self._held.values()):
            held.stream.tick()
            if held.call is not None and held.stream.is_stuck:
                held.call.cut()
            if held.call is not None and held.stream.trouble is not None:
                held.call.fail(held.stream.trouble)
            if isinstance(held.stream.trouble, WrongState):
                self._end_lost(held)
            elif held.call is None and now_s - held.left_s > self._limits.resume_window_s:
                self._observer.session("expired")
                self._drop(held, forget=True)
        self._ticked.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        self.is_ticking = True
        try:
            while True:
                await asyncio.sleep(1 / _TICKS_PER_S)
                self.tick()
        finally:
            self.is_ticking = False

    async def close(self) -> None:
        """End every session."""
        for held in list(self._held.values()):
            self._drop(held)
        await asyncio.gather(*self._closing)

    def _attached(self, held: _Held[C], *, resumed: bool) -> Call[C]:
        """Give a session to a new call."""
        held.call = Call(held, resumed=resumed)
        held.stream.attach()
        self._observer.session("resumed" if resumed else "opened")
        return held.call

    def _make_room(self, caller: str, *, is_shared: bool) -> None:
        """Enforce the limit of the caller's sessions; one without a call is dropped for one with a call."""
        own = [held for held in self._held.values() if held.caller == caller]
        left = [held for held in own if held.call is None and (held.stream.is_delivered or not is_shared)]
        has_its_limit = len(own) >= self._limits.max_streams_per_caller
        if has_its_limit and not left:
            message = f"You have {len(own)} streams open, which is your limit."
            raise RateLimited(message, reason="TOO_MANY_STREAMS", retry_after_s=1.0, subject=caller)
        self.check_capacity()
        if has_its_limit:
            self._evict(left)

    def check_capacity(self) -> None:
        """Raise Overloaded if this server has as many streams open as it may."""
        n_open = self.n_open
        if n_open >= self._limits.max_streams:
            raise Overloaded(f"This server has {n_open} streams open, its limit. Try again, or another replica.")

    def _evict(self, candidates: list[_Held[C]]) -> None:
        """Drop the session whose loss costs least."""
        self._observer.session("evicted")
        self._drop(min(candidates, key=_worth))

    def _end_lost(self, held: _Held[C]) -> None:
        """Drop the copy of a session that another server has, or a newer copy here."""
        if held.call is not None:
            held.call.fail(taken_error())
        self._drop(held)

    async def _hand_over(self, held: _Held[C], stream: DurableStream, within_s: float) -> None:
        error = moved_error()
        await stream.hand_over(error, within_s)
        if self._held.get(held.id) is not held:
            return
        self._observer.session("handed_over")
        held.is_handed_over = True
        if held.call is None:
            self._drop(held)
        else:
            asyncio.get_running_loop().call_later(_LAST_EVENTS_S, held.call.fail, error)

    def _drop(self, held: _Held[C], *, forget: bool = False) -> None:
        del self._held[held.id]
        self._start(held.stream.close(forget=forget))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _is_waited_for(held: _Held[Any]) -> bool:
    """Whether a server that drains, and has no more calls, has something left to do for a session."""
    if held.call is not None:
        return True  # it has ended, and is about to leave
    if isinstance(held.stream, DurableStream):
        return True  # until it is handed over
    return held.stream.acknowledged_bytes > 0 and not held.stream.is_delivered


def new_session_id() -> str:
    """Return an unpredictable id."""
    return secrets.token_urlsafe(16)


def moved_error() -> Overloaded:
    """Return the error for a call whose session is handed over."""
    message = "This server stops. Resume the session: another server goes on."
    return Overloaded(message, reason="DRAINING", retry_after_s=0.1)


def taken_error() -> WrongState:
    """Return the error for a call whose session was resumed by another call."""
    return WrongState("Another call has resumed this session.", reason="SESSION_TAKEN")


def _worth(held: _Held[C]) -> tuple[bool, float]:
    """Return a key that sorts sessions by what their loss costs: a completed session is hardly ever resumed."""
    return not held.stream.journal.is_closed, held.left_s
