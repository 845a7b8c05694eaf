"""The inference queue, and what leaves it next: lanes by priority, fairness between callers, batches of equal keys.

Lanes. Work of a lower lane goes first. So that none starves, a lane that was not served for `starve_after_s` gets one
batch before all others; at worst it then has one batch in every such period.

Fairness. Inside a lane every caller has a virtual time: the engine seconds it has been given. The caller with the least
is next (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996). A new caller starts at the lane's current time,
so it gets no credit for having been idle, and does not wait behind another's hundred files. A caller that filled free
seats of other batches gets ahead of the others, but only MAX_LEAD_S of that count against it.

Promotion. Accepted work must not miss its deadline because others keep arriving: from `promote_s` on, an entry goes
before all but live speech, after what its caller has queued before it.

Yielding. While live speech may arrive at any moment, part of the engine is kept free for it: `pop` can leave
the lanes that can wait, or be dropped, to other workers, unless they starve.

Batches. The next entry decides the batch's key. Others with an equal key join it in the same order, but none of a
higher lane, so that urgent work does not pay for company.

No clock, no I/O: `scheduler.py` drives it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from typeless_grpc.engine.interface import Lane

T = TypeVar("T")

# Callers without queued work that a lane remembers; beyond it, the least served are forgotten.
MAX_IDLE_CALLERS = 1024
# How far a caller can get ahead of the least served one, in seconds of the engine; it never waits longer for that.
MAX_LEAD_S = 60.0
# Served entries that the pace of a lane is measured over.
N_MEASURED = 32
# Lanes that leave the last free worker to live speech: interims matter less than the finals that they would delay,
# and nobody waits for the result of the others.
YIELDING = frozenset({Lane.LIVE_INTERIM, Lane.BATCH, Lane.JOBS})


@dataclass(eq=False)
class Entry(Generic[T]):
    """Queued work. key: only entries with equal keys share a batch. cost_s: its expected cost.

    promote_s: when it is promoted; never without a deadline.
    """

    work: T
    key: Hashable
    cost_s: float
    lane: Lane
    caller: str
    queued_s: float
    promote_s: float = math.inf


@dataclass
class _Caller(Generic[T]):
    """A caller in one lane. served_s: its virtual time. entries: its queued work, in order."""

    served_s: float
    entries: list[Entry[T]] = field(default_factory=list)


@dataclass
class _LaneState(Generic[T]):
    """One lane. n_queued: entries of all its callers.

    measured: when its last entries were served, and their costs, since it was last empty; the first is that moment.
    """

    callers: dict[str, _Caller[T]] = field(default_factory=dict)
    virtual_s: float = 0.0  # virtual time: the least of the callers with queued work when the lane was last served
    last_served_s: float = float("-inf")  # real time
    n_queued: int = 0
    measured: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=N_MEASURED + 1))

    def in_order(self) -> Iterator[Entry[T]]:
        """Yield all entries in the order in which they would be served if nothing else arrived."""
        return (entry for _, entry in self.with_start_times())

    def with_start_times(self) -> Iterator[tuple[float, Entry[T]]]:
        """The same, each with the virtual time at which it would start."""
        # The second element keeps equals in the order in which their callers arrived.
        heads = [
            (one.served_s, index, 0, one.entries) for index, one in enumerate(self.callers.values()) if one.entries
        ]
        heapq.heapify(heads)
        while heads:
            start_s, index, position, entries = heads[0]
            yield start_s, entries[position]
            if position + 1 < len(entries):
                heapq.heapreplace(heads, (start_s + entries[position].cost_s, index, position + 1, entries))
            else:
                heapq.heappop(heads)


class LaneQueue(Generic[T]):
    """The inference queue. It is not bounded: the scheduler checks `n_queued` before `push`."""

    def __init__(self, *, starve_after_s: float) -> None:
        self._starve_after_s = starve_after_s
        self._lanes: dict[Lane, _LaneState[T]] = {lane: _LaneState() for lane in Lane}
        self._timed: set[Entry[T]] = set()  # those that will be promoted

    def push(self, entry: Entry[T]) -> None:
        """Add an entry."""
        lane = self._lanes[entry.lane]
        if not lane.n_queued:
            lane.last_served_s = entry.queued_s  # an empty lane is not starving
            lane.measured.clear()
            lane.measured.append((entry.queued_s, 0.0))
        caller = lane.callers.get(entry.caller)
        if caller is None:
            caller = lane.callers[entry.caller] = _Caller(lane.virtual_s)
        elif not caller.entries:
            caller.served_s = max(caller.served_s, lane.virtual_s)  # an idle caller gets no credit
        caller.entries.append(entry)
        lane.n_queued += 1
        if entry.promote_s < math.inf:
            self._timed.add(entry)

    def remove(self, entry: Entry[T]) -> bool:
        """Remove an entry; False if it is not queued any more."""
        lane = self._lanes[entry.lane]
        caller = lane.callers.get(entry.caller)
        if caller is None or entry not in caller.entries:
            return False
        caller.entries.remove(entry)
        lane.n_queued -= 1
        self._timed.discard(entry)
        self._forget_idle(lane, entry.caller)
        return True

    def pop(
        self,
        now_s: float,
        *,
        max_batch: int,
        max_cost_s: float = float("inf"),
        n_free_workers: int = 1,
        is_yielding: bool = False,
    ) -> list[Entry[T]]:
        """Remove and return the next batch, the most urgent entry first; empty if there is none.

        max_batch: of entries. max_cost_s: of all entries together, unless the first alone costs more. n_free_workers:
        take only this worker's share of the entries that could join. is_yielding: skip the lanes that yield, unless
        they starve.
        """
        head = self._head(now_s, is_yielding)
        if head is None:
            return []
        batch, cost_s = [head], head.cost_s
        others = [entry for entry in self._batchable_with(head) if entry is not head]
        size = min(max_batch, math.ceil((1 + len(others)) / n_free_workers))
        for entry in others:
            if len(batch) == size or cost_s + entry.cost_s > max_cost_s:
                break
            batch.append(entry)
            cost_s += entry.cost_s
        for lane in {entry.lane for entry in batch}:
            state = self._lanes[lane]
            # An entry that joined may be of a caller far ahead, which must not set the time for new callers.
            least_s = min(caller.served_s for caller in state.callers.values() if caller.entries)
            state.virtual_s = max(state.virtual_s, least_s)
            state.last_served_s = now_s
        for entry in batch:
            self._serve(entry)
            self._lanes[entry.lane].measured.append((now_s, entry.cost_s))
        return batch

    def queued_before(self, lane: Lane, moment_s: float) -> list[Entry[T]]:
        """Return the entries of a lane that were queued before a moment."""
        return [entry for entry in self._lanes[lane].in_order() if entry.queued_s < moment_s]

    def n_queued(self, lane: Lane | None = None) -> int:
        """Return how many entries a lane has, or all lanes."""
        return self._lanes[lane].n_queued if lane is not None else sum(one.n_queued for one in self._lanes.values())

    def n_queued_of(self, caller: str, lane: Lane) -> int:
        """Return how many entries a caller has in a lane and those before it."""
        found = (self._lanes[one].callers.get(caller) for one in Lane if one <= lane)
        return sum(len(one.entries) for one in found if one is not None)

    def n_callers(self, lane: Lane) -> int:
        """Return how many callers a lane remembers, those without entries included."""
        return len(self._lanes[lane].callers)

    def has_next(self, now_s: float, *, is_yielding: bool = False) -> bool:
        """Whether `pop` would return a batch."""
        return self._head(now_s, is_yielding) is not None

    def next_batch_size(self, now_s: float, *, is_yielding: bool = False) -> int:
        """Return how many entries the next batch could have at most; 0 if there is none."""
        head = self._head(now_s, is_yielding)
        return 0 if head is None else len(self._batchable_with(head))

    def cost_ahead_s(self, lane: Lane, caller: str | None = None) -> float:
        """Return the cost of what would be served before new work of a caller in a lane.

        caller: None for work at the end of the lane.
        """
        urgent = sum(entry.cost_s for one in Lane if one < lane for entry in self._lanes[one].in_order())
        return urgent + self._own_cost_ahead_s(lane, caller)

    def measured_wait_s(self, lane: Lane, caller: str, now_s: float) -> float:
        """Return how long new work of a caller would wait in a lane at the pace at which the lane was served.

        More urgent work that has yet to arrive counts by that. 0 if too few entries were served to tell.
        """
        measured = self._lanes[lane].measured
        if not self._lanes[lane].n_queued or len(measured) < 1 + N_MEASURED // 2:
            return 0.0
        served = sum(cost_s for _, cost_s in measured) - measured[0][1]
        return self._own_cost_ahead_s(lane, caller) * (now_s - measured[0][0]) / served if served else 0.0

    def _own_cost_ahead_s(self, lane: Lane, caller: str | None) -> float:
        state = self._lanes[lane]
        next_start_s = float("inf") if caller is None else _next_start_s(state, caller)
        return sum(entry.cost_s for start_s, entry in state.with_start_times() if start_s <= next_start_s)

    def _batchable_with(self, head: Entry[T]) -> list[Entry[T]]:
        """Return the entries that can share head's batch, head included, the most urgent first."""
        return [
            entry
            for lane in Lane
            if lane <= head.lane
            for entry in self._lanes[lane].in_order()
            if entry.key == head.key
        ]

    def _head(self, now_s: float, is_yielding: bool) -> Entry[T] | None:
        """The entry that is served next."""
        queued = [lane for lane in Lane if self._lanes[lane].n_queued]
        starving = [lane for lane in queued if now_s - self._lanes[lane].last_served_s >= self._starve_after_s]
        if starving:
            lane: Lane | None = min(starving, key=lambda lane: self._lanes[lane].last_served_s)
        else:
            lane = next((lane for lane in queued if not is_yielding or lane not in YIELDING), None)
            if lane is None or lane > Lane.LIVE_INTERIM:
                first = min(self._timed, key=lambda entry: entry.promote_s, default=None)
                if first is not None and first.promote_s <= now_s:
                    return self._lanes[first.lane].callers[first.caller].entries[0]
        return next(self._lanes[lane].in_order()) if lane is not None else None

    def _serve(self, entry: Entry[T]) -> None:
        lane = self._lanes[entry.lane]
        caller = lane.callers[entry.caller]
        caller.entries.remove(entry)
        lane.n_queued -= 1
        self._timed.discard(entry)
        caller.served_s = max(caller.served_s, min(caller.served_s + entry.cost_s, lane.virtual_s + MAX_LEAD_S))
        self._forget_idle(lane, entry.caller)

    def _forget_idle(self, lane: _LaneState[T], name: str) -> None:
        """Forget a caller without entries, unless its time is ahead of the lane's."""
        caller = lane.callers[name]
        if not caller.entries and caller.served_s <= lane.virtual_s:
            del lane.callers[name]
        if not lane.n_queued:
            lane.callers.clear()
        elif len(lane.callers) > MAX_IDLE_CALLERS + lane.n_queued:
            kept = {name: one for name, one in lane.callers.items() if one.entries or one.served_s > lane.virtual_s}
            idle = sorted((name for name in kept if not kept[name].entries), key=lambda name: kept[name].served_s)
            for forgotten in idle[: max(0, len(idle) - MAX_IDLE_CALLERS // 2)]:
                del kept[forgotten]
            lane.callers = kept


def _next_start_s(lane: _LaneState[T], name: str) -> float:
    """Return the virtual time at which new work of a caller would start."""
    caller = lane.callers.get(name)
    if caller is None:
        return lane.virtual_s
    return max(lane.virtual_s, caller.served_s) + sum(entry.cost_s for entry in caller.entries)
