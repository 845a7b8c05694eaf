"""When refused callers may retry, so that each of them finds a slot.

If all of them came back after the same time, the flood would come back, and the time would be true for a few of them.
So each refusal books a time of its own. Bookings are as far apart as the ends of calls are, and callers have them in
turn: a caller with many refused calls has one in each round of all callers. Those that are due next keep their slots
for a moment, so that a caller who does not wait cannot take them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

# A caller is late by the network and its own timers. Slots are kept from AHEAD_S before the time to GRACE_S after it.
EARLY_S, AHEAD_S, GRACE_S = 0.05, 0.5, 1.0
MIN_WAIT_S, MAX_WAIT_S = 0.05, 60.0
# Bookings are this much farther apart than the ends of calls, so that each finds a slot. In minutes of the load of
# `make hardening`, 76 % did at 1.2, and 80 % at 1.4 and 1.6.
SLACK = 1.4
MAX_BOOKINGS = 10_000
# Ends of calls that the pace is measured over, and the pace that is assumed before there are enough of them.
MAX_ENDS, ENOUGH_ENDS, FIRST_PACE_S = 64, 16, 0.1


class RetryTimes:
    """The bookings of refused calls. It has no clock: now_s is the same clock in all calls."""

    def __init__(self) -> None:
        self._booked: list[tuple[float, str]] = []  # in order
        self._own: dict[str, deque[float]] = {}
        self._ends_s: deque[float] = deque(maxlen=MAX_ENDS + 1)  # the first is the beginning of the measurement
        self._assumed_s = FIRST_PACE_S

    def book(self, caller: str, now_s: float) -> float:
        """Book a retry of a call that was refused; return the seconds until then.

        No retry is booked later than MAX_WAIT_S from now, or beyond MAX_BOOKINGS: then it is tried without one.
        """
        self._expire(now_s)
        if not self._booked:
            self._assumed_s = self._pace_s(now_s)
            self._ends_s.clear()
            self._ends_s.append(now_s)
        if self.is_due(caller, now_s):  # it came when it should, and found no slot
            self._remove(self._own[caller][0], caller)
        own = self._own.setdefault(caller, deque())
        latest_s = max(now_s, own[-1] if own else now_s)
        due_s = latest_s + len(self._own) * SLACK * self._pace_s(now_s)
        if due_s - now_s > MAX_WAIT_S or len(self._booked) >= MAX_BOOKINGS:
            if not own:
                del self._own[caller]
            return MAX_WAIT_S
        own.append(due_s)
        insort(self._booked, (due_s, caller))
        return max(MIN_WAIT_S, due_s - now_s)

    def is_due(self, caller: str, now_s: float) -> bool:
        """Whether it is the turn of this caller."""
        self._expire(now_s)
        own = self._own.get(caller)
        return own is not None and own[0] <= now_s + EARLY_S

    def n_kept(self, caller: str, n_calls: Mapping[str, int], now_s: float) -> tuple[int, int]:
        """Return how many slots are kept for retries that will be due soon: of all callers, and of this one.

        n_calls: of each caller that has any. Only callers that have no more than this one count.
        """
        self._expire(now_s)
        mine, n_all, n_own = n_calls.get(caller, 0), 0, 0
        for due_s, other in self._booked:
            if due_s > now_s + AHEAD_S:
                break
            n_all += n_calls.get(other, 0) <= mine
            n_own += other == caller
        return n_all, n_own

    def admitted(self, caller: str, now_s: float) -> None:
        """A call of this caller was admitted: if one was due, it is this one."""
        if self.is_due(caller, now_s):
            self._remove(self._own[caller][0], caller)

    def ended(self, now_s: float) -> None:
        """A call has ended."""
        if self._booked:
            self._ends_s.append(now_s)

    @property
    def n_booked(self) -> int:
        """How many retries are booked."""
        return len(self._booked)

    def _pace_s(self, now_s: float) -> float:
        """The seconds in which one call ends while callers are refused."""
        n = len(self._ends_s) - 1
        if n < 0:
            return self._assumed_s
        measured_s = now_s - self._ends_s[0]
        n_assumed = 0 if n >= ENOUGH_ENDS else ENOUGH_ENDS - n
        return (measured_s + n_assumed * self._assumed_s) / (n + n_assumed)

    def _expire(self, now_s: float) -> None:
        while self._booked and self._booked[0][0] < now_s - GRACE_S:
            self._remove(*self._booked[0])

    def _remove(self, due_s: float, caller: str) -> None:
        del self._booked[bisect_left(self._booked, (due_s, caller))]
        own = self._own[caller]
        own.remove(due_s)
        if not own:
            del self._own[caller]
