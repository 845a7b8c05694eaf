"""Decides which engine a call goes to, and when.

Any call that an engine had when it was lost may be the cause. Such a call is quarantined: it is decoded again alone, on
an engine that has nothing else, so that only the cause itself can lose another engine. Meanwhile the other calls use
the other engines: quarantined calls leave one open while more than one is up. With one engine, both take turns:
calls that arrive while a quarantined one runs are next.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import DeadlineExceeded, Overloaded

# How long a quarantined call waits for a second engine to be up, so that it does not risk the only one.
PATIENCE_S = 5.0
RETRY_AFTER_S = 2.0


class Candidate(Protocol):
    """What is known of an engine; `RemoteEngine` implements it.

    generation: of its connection. is_suspicious: it has been silent for a while. is_reserved: another front has a call
    there that must be alone. n_sent: calls without a result.
    """

    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def is_suspicious(self) -> bool: ...
    @property
    def is_reserved(self) -> bool: ...
    @property
    def n_sent(self) -> int: ...
    def wait_s(self, lane: Lane) -> float: ...


CandidateT = TypeVar("CandidateT", bound=Candidate)
Connection = tuple[str, int]  # an engine's name and generation


def connection_of(engine: Candidate) -> Connection:
    """Return the name of a connection to an engine."""
    return engine.name, engine.generation


class Dispatch(Generic[CandidateT]):
    """Chooses engines. Belongs to one event loop."""

    def __init__(self, engines: Sequence[CandidateT], clock: Clock, max_wait_s: float) -> None:
        """max_wait_s: how long a call waits while no engine is up."""
        self._engines = engines
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._changed = asyncio.Event()
        self._n_waiting = 0  # calls that are not quarantined
        self._quarantined: list[tuple[int, Lane, int]] = []  # that wait, as a heap
        self._count = itertools.count()
        self._reserved: set[str] = set()  # names of the engines that have a quarantined call of this front
        self._n_chosen = {engine.name: 0 for engine in engines}

    def changed(self) -> None:
        """Wake waiting calls, because the state of an engine has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def up(self) -> None:
        """Wait until an engine is up."""
        while not any(engine.is_up for engine in self._engines):
            await self._changed.wait()

    async def choose(self, ticket: Ticket, left_out: Container[Connection]) -> CandidateT:
        """Return the engine that will serve a call first; wait for one if none takes calls.

        left_out: connections to engines that do not take it. Raises Overloaded or DeadlineExceeded if none is up in
        time; interims do not wait.
        """
        self._n_waiting += 1
        try:
            up_s = self._clock.now_s()
            while not (found := self._open(left_out)):
                if ticket.lane is Lane.LIVE_INTERIM:
                    raise interim_dropped()
                up_s = await self._change(ticket, up_s)
        finally:
            self._n_waiting -= 1
            if not self._n_waiting and self._quarantined:
                self.changed()
        chosen = min(found, key=lambda one: self._rank(one, ticket.lane))
        self._n_chosen[chosen.name] += 1
        return chosen

    async def reserve(self, ticket: Ticket, left_out: Container[Connection], n_losses: int) -> CandidateT:
        """Return an engine for a quarantined call; no others get it until `released`. The rest is as for `choose`.

        n_losses: engines that the call lost alone; those with fewer go first.
        """
        mine = (n_losses, ticket.lane, next(self._count))
        heapq.heappush(self._quarantined, mine)
        began_s = up_s = self._clock.now_s()
        try:
            while True:
                is_next = self._quarantined[0] == mine
                if is_next and (found := self._for_quarantined(left_out, self._clock.now_s() - began_s)):
                    self._reserved.add(found.name)
                    return found
                up_s = await self._change(ticket, up_s, began_s + PATIENCE_S)
        finally:
            self._quarantined.remove(mine)
            heapq.heapify(self._quarantined)
            self.changed()

    @contextmanager
    def released(self, engine: CandidateT) -> Iterator[None]:
        """Give an engine back to all calls at the end."""
        try:
            yield
        finally:
            self._reserved.discard(engine.name)
            self.changed()

    async def _change(self, ticket: Ticket, up_s: float, wake_s: float = 0.0) -> float:
        """Wait for a change of an engine; return when an engine was last up, as far as known. Raises as `choose`.

        up_s: what the previous call returned. wake_s: when to return at the latest; ignored if it has passed.
        """
        now_s = self._clock.now_s()
        if any(engine.is_up for engine in self._engines):
            up_s = now_s
        if ticket.deadline_s is not None and now_s >= ticket.deadline_s:
            raise DeadlineExceeded("The deadline passed while the call waited for an engine.")
        if now_s >= up_s + self._max_wait_s:
            raise unavailable()
        moments = [up_s + self._max_wait_s, ticket.deadline_s or float("inf"), wake_s]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(moment for moment in moments if moment > now_s) - now_s):
                await self._changed.wait()
        return up_s

    def _open(self, left_out: Container[Connection]) -> list[CandidateT]:
        """Return the engines that take calls."""
        return [
            one
            for one in self._engines
            if one.is_up
            and not one.is_reserved
            and one.name not in self._reserved
            and connection_of(one) not in left_out
        ]

    def _for_quarantined(self, left_out: Container[Connection], waited_s: float) -> CandidateT | None:
        """Return an engine that can be reserved."""
        found = self._open(left_out)
        n_up = sum(one.is_up for one in self._engines)
        is_only = n_up == 1 and (len(self._engines) == 1 or waited_s >= PATIENCE_S) and not self._n_waiting
        if not found or (len(found) == 1 and not is_only):
            return None
        return min(found, key=lambda one: (one.is_suspicious, one.n_sent, one.wait_s(Lane.UNARY)))

    def _rank(self, engine: CandidateT, lane: Lane) -> tuple[float, ...]:
        """Return the rank of an engine for a call: the lowest is best."""
        return (engine.is_suspicious, engine.wait_s(lane), engine.n_sent, self._n_chosen[engine.name])


def interim_dropped() -> Overloaded:
    """Return the refusal of an interim that no engine takes now."""
    return Overloaded("No engine is up for interim results now.", reason="INTERIM_DROPPED")


def unavailable() -> Overloaded:
    """Return the refusal of a call that has waited long enough for an engine."""
    return Overloaded("No engine is up.", reason="ENGINE_UNAVAILABLE", retry_after_s=RETRY_AFTER_S)
