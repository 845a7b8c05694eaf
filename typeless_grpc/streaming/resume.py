"""Sessions by name, kept for a while after their call broke, and how many there may be.

Whoever opened a session may take it up again, also while an old call still seems to be there: a broken connection is
often noticed by the caller first. The newest call has the session; the older one is told so and ends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.errors import InvalidInput, NotFound, Overloaded, RateLimited, TypelessError, WrongState
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.events import EndReason, Entry
from typeless_grpc.streaming.requests import Request

_TICKS_PER_S = 4

C = TypeVar("C")


@dataclass(frozen=True)
class SessionLimits:
    """resume_window_s: how long a session without a call is kept. max_streams: sessions with a call, of all callers.

    max_streams_per_caller: of one caller. max_kept: sessions without a call, of all callers; of too many, those where
    all is said go first, then the oldest.
    """

    resume_window_s: float = 60.0
    max_streams: int = 256
    max_streams_per_caller: int = 10
    max_kept: int = 256


@dataclass
class _Held(Generic[C]):
    """A session, and who has it. call: the one that it belongs to now; left_s: since when there is none.

    charged_s: of its audio, what its caller was charged for.
    """

    id: str
    caller: str
    owner: str
    config: C
    stream: Stream
    call: Call[C] | None = None
    left_s: float = 0.0
    charged_s: float = 0.0


class Call(Generic[C]):
    """One call's hold on a session. config: what the session was opened with."""

    def __init__(self, held: _Held[C], *, resumed: bool) -> None:
        self._held = held
        self._error: BaseException | None = None
        self.session_id, self.config = held.id, held.config
        self._task = asyncio.current_task()
        self.is_resumed = resumed
        self.acknowledged_bytes = held.stream.acknowledged_bytes  # at this moment; no older call adds to it
        self.has_ended = held.stream.end_reason is EndReason.CALLER

    @property
    def stream(self) -> Stream:
        """The session's stream."""
        return self._held.stream

    @property
    def is_current(self) -> bool:
        """Whether no other call has taken the session up."""
        return self._held.call is self and self._error is None

    @property
    def charged_s(self) -> float:
        """Seconds of the session's audio that its calls were charged for, in all."""
        return self._held.charged_s

    @charged_s.setter
    def charged_s(self, seconds: float) -> None:
        self._held.charged_s = seconds

    async def put(self, request: Request) -> None:
        """Pass a request on, unless another call has the session by now."""
        await self._held.stream.put(request, still_wanted=lambda: self.is_current)

    def events_after(self, sequence: int) -> AsyncGenerator[Entry, None]:
        """The session's events. Raises what `fail` was told at once, and what ended the stream after its last event."""
        return self._held.stream.events_after(sequence, lambda: self._error)

    def cut(self) -> None:
        """End the call as if its connection had broken: it waits for a caller that does not read."""
        if self._task is not None:
            self._task.cancel()

    def fail(self, error: BaseException) -> None:
        """End the call with error, once."""
        if self._error is None:
            self._error = error
            self._held.stream.wake()


class Sessions(Generic[C]):
    """All sessions of this server, each with the configuration (C) it was opened with.

    `tick` is to be called a few times a second, by `run` or by a test. is_kept: whether `run` does.
    """

    def __init__(self, limits: SessionLimits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._held: dict[str, _Held[C]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ticked = asyncio.Event()
        self.is_draining = self.is_kept = False

    def __len__(self) -> int:
        return len(self._held)

    def open(
        self, caller: str, owner: str, config: C, stream: Callable[[], Stream], *, is_shared: bool = False
    ) -> Call[C]:
        """A new session. caller: whose number of streams it counts against; owner: who may resume it.

        is_shared: caller may be several, of whom none may end what another will come back for.
        Raises RateLimited (TOO_MANY_STREAMS) and Overloaded.
        """
        self._make_room(caller, is_shared=is_shared)
        held = _Held(secrets.token_urlsafe(16), caller, owner, config, stream())
        self._held[held.id] = held
        return self._given(held, resumed=False)

    def resume(self, session_id: str, owner: str, after_sequence: int) -> Call[C]:
        """A session taken up again. Raises NotFound where owner has none of this id, RateLimited, Overloaded."""
        held = self._held.get(session_id)
        if held is None or held.owner != owner:
            message = "There is no such session, or not any more: it can be resumed for a short time only."
            raise NotFound(message, reason="SESSION_NOT_FOUND")
        if not 0 <= after_sequence <= held.stream.journal.last_sequence:
            why = f"the session is at event {held.stream.journal.last_sequence}"
            raise InvalidInput("config.resume_after_sequence", why)
        if held.call is not None:
            message = "Another call has taken this session up."
            held.call.fail(WrongState(message, reason="SESSION_TAKEN"))
        else:
            self._check_capacity()
        return self._given(held, resumed=True)

    def leave(self, call: Call[C]) -> None:
        """The call is over. Its session is kept for the window, unless another call has it."""
        held = self._held.get(call.session_id)
        if held is None or held.call is not call:
            return
        held.call, held.left_s = None, self._clock.now_s()
        held.stream.detach()
        kept = [other for other in self._held.values() if other.call is None]
        if len(kept) > self._limits.max_kept:
            self._drop(min(kept, key=_worth))

    def drain(self, error: TypelessError, within_s: float) -> None:
        """Tell every caller, and end every session's audio where its speaker pauses, at the latest after within_s."""
        self.is_draining = True
        for held in self._held.values():
            held.stream.warn(error)
            held.stream.drain(within_s)

    async def drained(self) -> None:
        """Wait until no session without a call has anything left for its caller, who may still come back for it.

        A session that took no audio loses nothing with this server, and is not waited for.
        """
        while any(
            held.call is None and held.stream.acknowledged_bytes and not held.stream.is_delivered
            for held in self._held.values()
        ):
            self._ticked.clear()
            await self._ticked.wait()

    def tick(self) -> None:
        """Let every stream look at the clock, and drop sessions past their window."""
        now_s = self._clock.now_s()
        for held in list(self._held.values()):
            held.stream.tick()
            if held.call is not None and held.stream.is_stuck:
                held.call.cut()
            if held.call is None and now_s - held.left_s > self._limits.resume_window_s:
                self._drop(held)
        self._ticked.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        self.is_kept = True
        try:
            while True:
                await asyncio.sleep(1 / _TICKS_PER_S)
                self.tick()
        finally:
            self.is_kept = False

    async def close(self) -> None:
        """End every session."""
        for held in list(self._held.values()):
            self._drop(held)
        await asyncio.gather(*self._closing)

    def _given(self, held: _Held[C], *, resumed: bool) -> Call[C]:
        held.call = Call(held, resumed=resumed)
        held.stream.attach()
        return held.call

    def _make_room(self, caller: str, *, is_shared: bool) -> None:
        """Count the caller's sessions; one without a call makes way for one that has a caller."""
        own = [held for held in self._held.values() if held.caller == caller]
        left = [held for held in own if held.call is None and (held.stream.is_delivered or not is_shared)]
        has_its_limit = len(own) >= self._limits.max_streams_per_caller
        if has_its_limit and not left:
            message = f"You have {len(own)} streams open, which is your limit."
            raise RateLimited(message, reason="TOO_MANY_STREAMS", retry_after_s=1.0, subject=caller)
        self._check_capacity()
        if has_its_limit:
            self._drop(min(left, key=_worth))

    def _check_capacity(self) -> None:
        n_open = sum(held.call is not None for held in self._held.values())
        if n_open >= self._limits.max_streams:
            raise Overloaded(f"This server has {n_open} streams open, its limit. Try again, or another replica.")

    def _drop(self, held: _Held[C]) -> None:
        del self._held[held.id]
        task = asyncio.ensure_future(held.stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _worth(held: _Held[C]) -> tuple[bool, float]:
    """The less, the sooner a session goes: where all is said already, hardly anybody will ask again."""
    return not held.stream.journal.is_closed, held.left_s
