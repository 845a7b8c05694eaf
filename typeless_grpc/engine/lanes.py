"""What waits for the engine, and who is next: lanes by urgency, fairness between callers, batches of equals.

Lanes. Work of a lower lane goes first. So that none starves, a lane that has waited `starve_after_s` for its turn gets
one batch before all others; at worst it then has one batch in every such period.

Fairness. Inside a lane every caller has a virtual time: the engine seconds it has been given. The caller with the least
is next (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996). One that comes anew starts at the lane's
current time, so it has neither credit for having been away nor to wait behind another's hundred files. One that took
seats in batches which nobody else wanted is ahead of the others, and is held to it only so far.

Yielding. Where live speech may come at any moment, a part of the engine is kept free for it: `pop` can be asked to
leave the lanes that can wait, or be dropped, to other parts, unless they starve.

Batches. The next piece of work decides the batch's key; others with an equal key join in the same order, but none of a
lane more patient than its own, so that nobody urgent pays for company.

No clock, no I/O: `scheduler.py` drives it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from typeless_grpc.engine.interface import Lane

T = TypeVar("T")

# Callers of a lane that have nothing in line and are remembered all the same; past it the least served are forgotten.
MAX_REMEMBERED = 1024
# Seconds of the engine that a caller can be ahead of the least served: no one waits longer for what it had for free.
MOST_AHEAD_S = 60.0
# Lanes that leave the last free part of the engine to live speech: interims are worth less than the finals they would
# delay, and nobody waits at the other end of the rest.
YIELDING = frozenset({Lane.LIVE_INTERIM, Lane.BATCH, Lane.JOBS})


@dataclass(eq=False)
class Waiting(Generic[T]):
    """A piece of work in line. key: only equals share a batch. cost_s: what it is expected to take."""

    work: T
    key: Hashable
    cost_s: float
    lane: Lane
    caller: str
    since_s: float


@dataclass
class _Caller(Generic[T]):
    served_s: float
    line: list[Waiting[T]] = field(default_factory=list)


@dataclass
class _LaneState(Generic[T]):
    callers: dict[str, _Caller[T]] = field(default_factory=dict)
    now_s: float = 0.0  # virtual: the least time among those in line when last served
    turn_s: float = float("-inf")  # real: when it last had a turn
    n_waiting: int = 0

    def in_order(self) -> Iterator[Waiting[T]]:
        """Everything waiting, as it would be served if nobody came and each were given in turn."""
        return (entry for _, entry in self.starts_s())

    def starts_s(self) -> Iterator[tuple[float, Waiting[T]]]:
        """The same, each with its caller's virtual time when its turn comes."""
        # The second item makes equals keep the order in which their callers came.
        heads = [(one.served_s, index, 0, one.line) for index, one in enumerate(self.callers.values()) if one.line]
        heapq.heapify(heads)
        while heads:
            start_s, index, place, line = heads[0]
            yield start_s, line[place]
            if place + 1 < len(line):
                heapq.heapreplace(heads, (start_s + line[place].cost_s, index, place + 1, line))
            else:
                heapq.heappop(heads)


class Lanes(Generic[T]):
    """The line before the engine. Not bounded in itself: `push` refuses nothing, `n_waiting` tells."""

    def __init__(self, *, starve_after_s: float) -> None:
        self._starve_after_s = starve_after_s
        self._lanes: dict[Lane, _LaneState[T]] = {lane: _LaneState() for lane in Lane}

    def push(self, entry: Waiting[T]) -> None:
        """Get in line."""
        lane = self._lanes[entry.lane]
        if not lane.n_waiting:
            lane.turn_s = entry.since_s  # a lane with nothing to do does not starve
        caller = lane.callers.get(entry.caller)
        if caller is None:
            caller = lane.callers[entry.caller] = _Caller(lane.now_s)
        elif not caller.line:
            caller.served_s = max(caller.served_s, lane.now_s)  # being away earns nothing
        caller.line.append(entry)
        lane.n_waiting += 1

    def remove(self, entry: Waiting[T]) -> bool:
        """Leave the line; False where it is not in it any more."""
        lane = self._lanes[entry.lane]
        caller = lane.callers.get(entry.caller)
        if caller is None or entry not in caller.line:
            return False
        caller.line.remove(entry)
        lane.n_waiting -= 1
        self._forget(lane, entry.caller)
        return True

    def pop(
        self,
        now_s: float,
        *,
        max_batch: int,
        max_cost_s: float = float("inf"),
        n_takers: int = 1,
        is_yielding: bool = False,
    ) -> list[Waiting[T]]:
        """The next batch, in the order of its urgency; empty where nothing waits.

        max_batch: at most so many. max_cost_s: expected of all together, unless one alone is more. n_takers: leave as
        many for each other one of them. is_yielding: leave the lanes that yield, unless they starve.
        """
        head_lane = self._next_lane(now_s, is_yielding)
        if head_lane is None:
            return []
        head = next(self._lanes[head_lane].in_order())
        batch, cost_s = [head], head.cost_s
        alike = [entry for entry in self._alike(head) if entry is not head]
        size = min(max_batch, math.ceil((1 + len(alike)) / n_takers))
        for entry in alike:
            if len(batch) == size or cost_s + entry.cost_s > max_cost_s:
                break
            batch.append(entry)
            cost_s += entry.cost_s
        for lane in {entry.lane for entry in batch}:
            state = self._lanes[lane]
            # Company may be of a caller that is far ahead: it is not the measure for those who come.
            least_s = min(caller.served_s for caller in state.callers.values() if caller.line)
            state.now_s = max(state.now_s, least_s)
            state.turn_s = now_s
        for entry in batch:
            self._serve(entry)
        return batch

    def older_than(self, lane: Lane, since_s: float) -> list[Waiting[T]]:
        """What has waited in a lane since before a moment."""
        return [entry for entry in self._lanes[lane].in_order() if entry.since_s < since_s]

    def n_waiting(self, lane: Lane | None = None) -> int:
        """How many pieces of work wait, in one lane or in all."""
        return (
            self._lanes[lane].n_waiting if lane is not None else sum(state.n_waiting for state in self._lanes.values())
        )

    def n_waiting_of(self, caller: str, lane: Lane) -> int:
        """How many of a caller's pieces of work wait in a lane and those before it."""
        found = (self._lanes[one].callers.get(caller) for one in Lane if one <= lane)
        return sum(len(one.line) for one in found if one is not None)

    def has_next(self, now_s: float, *, is_yielding: bool = False) -> bool:
        """Whether `pop` would give something."""
        return self._next_lane(now_s, is_yielding) is not None

    def n_alike(self, now_s: float, *, is_yielding: bool = False) -> int:
        """How large the next batch could be at most; 0 where there is none."""
        head_lane = self._next_lane(now_s, is_yielding)
        return 0 if head_lane is None else len(self._alike(next(self._lanes[head_lane].in_order())))

    def cost_s(self, lane: Lane, caller: str | None = None) -> float:
        """What would be served before new work of a lane and a caller, as expected; None: behind all of the lane."""
        urgent = sum(entry.cost_s for one in Lane if one < lane for entry in self._lanes[one].in_order())
        state = self._lanes[lane]
        turn_s = float("inf") if caller is None else _next_start_s(state, caller)
        return urgent + sum(entry.cost_s for start_s, entry in state.starts_s() if start_s <= turn_s)

    def _alike(self, head: Waiting[T]) -> list[Waiting[T]]:
        """What can share head's batch, itself too, in order of urgency."""
        return [
            entry
            for lane in Lane
            if lane <= head.lane
            for entry in self._lanes[lane].in_order()
            if entry.key == head.key
        ]

    def _next_lane(self, now_s: float, is_yielding: bool = False) -> Lane | None:
        waiting = [lane for lane in Lane if self._lanes[lane].n_waiting]
        starving = [lane for lane in waiting if now_s - self._lanes[lane].turn_s >= self._starve_after_s]
        if starving:
            return min(starving, key=lambda lane: self._lanes[lane].turn_s)
        return next((lane for lane in waiting if not is_yielding or lane not in YIELDING), None)

    def _serve(self, entry: Waiting[T]) -> None:
        lane = self._lanes[entry.lane]
        caller = lane.callers[entry.caller]
        caller.line.remove(entry)
        lane.n_waiting -= 1
        caller.served_s = max(caller.served_s, min(caller.served_s + entry.cost_s, lane.now_s + MOST_AHEAD_S))
        self._forget(lane, entry.caller)

    def _forget(self, lane: _LaneState[T], name: str) -> None:
        """A caller with nothing in line is remembered only while its time is ahead of the lane's."""
        caller = lane.callers[name]
        if not caller.line and caller.served_s <= lane.now_s:
            del lane.callers[name]
        if not lane.n_waiting:
            lane.callers.clear()
        elif len(lane.callers) > MAX_REMEMBERED + lane.n_waiting:
            ahead = {name: one for name, one in lane.callers.items() if one.line or one.served_s > lane.now_s}
            idle = sorted((name for name in ahead if not ahead[name].line), key=lambda name: ahead[name].served_s)
            for forgotten in idle[: max(0, len(idle) - MAX_REMEMBERED // 2)]:
                del ahead[forgotten]
            lane.callers = ahead


def _next_start_s(lane: _LaneState[T], name: str) -> float:
    """The virtual time at which new work of a caller would have its turn."""
    caller = lane.callers.get(name)
    if caller is None:
        return lane.now_s
    return max(lane.now_s, caller.served_s) + sum(entry.cost_s for entry in caller.line)
