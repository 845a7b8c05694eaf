"""Several engines as one.

A call goes to the engine that will serve it first. If its engine is lost, it is decoded again on another one, or on the
new one. Any call that ran on a lost engine may be the cause, so these calls are decoded again one at a time on each
engine: a call whose second engine is lost too is the likely cause and fails, and the others succeed with a delay.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from typeless_grpc.audio.formats import Audio
from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import DecodeOptions, Engine, Lane, Recognition, Ticket
from typeless_grpc.engines.connection import EngineLost
from typeless_grpc.engines.remote import RemoteEngine
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

MAX_LOSSES = 2  # engines that a call may lose before it fails
RESTART_S = 10.0  # for which calls only wait for an engine; without one for longer, the group is broken
RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class GroupOptions:
    """max_wait_s: how long a call waits for an engine when none is up."""

    max_wait_s: float


class Turns:
    """Lets one call at a time pass, the most urgent lane first. Belongs to one event loop."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[tuple[Lane, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    @property
    def is_taken(self) -> bool:
        """Whether a call has its turn."""
        return self._is_taken

    @property
    def n_waiting(self) -> int:
        """How many calls wait or have their turn."""
        return len(self._waiting) + self._is_taken

    @asynccontextmanager
    async def turn(self, lane: Lane) -> AsyncIterator[None]:
        """Wait for the turn of a call, and keep it while this is open."""
        if self._is_taken:
            mine = asyncio.get_running_loop().create_future()
            entry = (lane, next(self._count), mine)
            heapq.heappush(self._waiting, entry)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._next()
                else:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                raise
        self._is_taken = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        """Hand the turn on."""
        self._is_taken = bool(self._waiting)
        if self._waiting:
            heapq.heappop(self._waiting)[2].set_result(None)


class EngineGroup:
    """An `Engine` over several. Belongs to one event loop."""

    def __init__(
        self,
        engines: Sequence[RemoteEngine],
        clock: Clock,
        options: GroupOptions,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        """on_retry: called for each call that is decoded again."""
        self._engines = engines
        self._clock = clock
        self._options = options
        self._on_retry = on_retry
        self._changed = asyncio.Event()
        self._turns = {engine.name: Turns() for engine in engines}
        self._down_since_s: float | None = clock.now_s()
        self._n_chosen = {engine.name: 0 for engine in engines}

    def changed(self) -> None:
        """Note that an engine is up or down."""
        if any(engine.is_up for engine in self._engines):
            self._down_since_s = None
        elif self._down_since_s is None:
            self._down_since_s = self._clock.now_s()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def up(self) -> None:
        """Wait until an engine is up."""
        while not any(engine.is_up for engine in self._engines):
            await self._changed.wait()

    @property
    def backlog_s(self) -> float:
        """See `Engine`: of the engine that would serve new work first."""
        return min((engine.backlog_s for engine in self._engines if engine.is_up), default=RESTART_S)

    @property
    def stalled_s(self) -> float:
        """See `Engine`: of the engine with the most progress."""
        if self._down_since_s is not None:
            down_s = self._clock.now_s() - self._down_since_s
            return down_s if down_s < RESTART_S else float("inf")
        return min((engine.stalled_s for engine in self._engines if engine.is_up), default=0.0)

    def n_queued(self, lane: Lane) -> int:
        """How many windows of a lane are in the queues of all engines."""
        return sum(engine.n_queued(lane) for engine in self._engines)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._decode(lambda engine: engine.transcribe(audio, options, ticket), ticket)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._decode(lambda engine: engine.recognize(utterance, options, ticket), ticket)

    async def _decode(self, decode: Callable[[Engine], Awaitable[Recognition]], ticket: Ticket) -> Recognition:
        n_lost = 0
        left_out: set[tuple[str, int]] = set()  # connections of engines that were lost, or take no new calls
        while True:
            engine = await self._choose(ticket, left_out, is_retry=n_lost > 0)
            connection = (engine.name, engine.generation)
            try:
                if not n_lost:
                    return await decode(engine)
                async with self._turns[engine.name].turn(ticket.lane):
                    if engine.is_up and engine.generation == connection[1]:
                        return await decode(engine)
            except EngineLost as lost:
                if ticket.lane is Lane.LIVE_INTERIM:
                    raise _interim_dropped() from lost
                n_lost += 1
                left_out.add(connection)
                if n_lost == MAX_LOSSES:
                    log.error("two engines were lost while they decoded this call; it fails")
                    why = f"{MAX_LOSSES} engines were lost while they decoded this audio."
                    raise EngineFailed(why, reason="ENGINE_CRASHED") from lost
                log.warning("engine was lost; its call is decoded again", engine=engine.name, why=lost.why)
                self._on_retry()
            except Overloaded as refusal:
                if refusal.reason != "DRAINING":
                    raise
                left_out.add(connection)

    async def _choose(self, ticket: Ticket, left_out: Container[tuple[str, int]], *, is_retry: bool) -> RemoteEngine:
        """Return the engine that will serve a call first; wait for one if none is up.

        is_retry: the call may have crashed an engine. Raises Overloaded or DeadlineExceeded if none is up in time.
        """
        ends_s = self._clock.now_s() + self._options.max_wait_s
        while True:
            changed = self._changed
            if found := [one for one in self._engines if one.is_up and (one.name, one.generation) not in left_out]:
                chosen = min(found, key=lambda one: self._rank(one, ticket.lane, is_retry=is_retry))
                self._n_chosen[chosen.name] += 1
                return chosen
            if ticket.lane is Lane.LIVE_INTERIM:
                raise _interim_dropped()
            now_s = self._clock.now_s()
            if ticket.deadline_s is not None and now_s >= ticket.deadline_s:
                raise DeadlineExceeded("The deadline passed while no engine was up.")
            if now_s >= ends_s:
                raise Overloaded("No engine is up.", reason="ENGINE_UNAVAILABLE", retry_after_s=RETRY_AFTER_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(ends_s, ticket.deadline_s or ends_s) - now_s):
                    await changed.wait()

    def _rank(self, engine: RemoteEngine, lane: Lane, *, is_retry: bool) -> tuple[float, ...]:
        """Lower is better. Calls that may crash an engine wait for their turns; others avoid an engine with one."""
        turns = self._turns[engine.name]
        n_ahead = turns.n_waiting if is_retry else turns.is_taken
        wait_s = engine.wait_s(lane)
        return (engine.is_suspicious, n_ahead, wait_s, engine.n_sent, self._n_chosen[engine.name])


def _interim_dropped() -> Overloaded:
    return Overloaded("No engine is up for interim results now.", reason="INTERIM_DROPPED")
