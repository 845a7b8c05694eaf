"""Whether the times to retry are true, and fair: callers of a full server, by a clock that the test sets."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.retry_times import AHEAD_S, GRACE_S, MAX_BOOKINGS, MAX_WAIT_S, RetryTimes
from typeless_grpc.errors import Overloaded, RateLimited

CALLS_A_SECOND = 16.0  # that the server serves
NETWORK_S = 0.02


@dataclass
class Bench:
    """A server that serves its calls in turn, each caller's in its order, and callers that come and come again.

    answered: by caller. retries: whether each retry at the requested time was accepted. n_inside: after each event.
    """

    n_slots: int = 64
    seed: int = 1
    answered: Counter[str] = field(default_factory=Counter)
    retries: list[bool] = field(default_factory=list)
    n_inside: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clock = FakeClock()
        self._began_s = self._clock.now_s()
        self._admission = Admission(AdmissionOptions(max_calls=self.n_slots), self._clock)
        self._random = random.Random(self.seed)
        self._numbers: Iterator[int] = iter(range(10**9))
        self._events: list[tuple[float, int, str, str, float]] = []
        self._inside: list[tuple[str, ExitStack, float]] = []
        self._at(1 / CALLS_A_SECOND, "end", "", 0.0)

    def add(self, caller: str, n_calls: int, impatience_s: float = 0.0) -> None:
        """Keep so many calls going. impatience_s: retry after this time instead of the requested one; 0 obeys."""
        for _ in range(n_calls):
            self._at(self._random.uniform(0, 1), "call", caller, impatience_s)

    def flood(self, caller: str, calls_a_second: float, seconds: float) -> None:
        """Calls that are not repeated when they are refused."""
        for i in range(round(seconds * calls_a_second)):
            self._at(i / calls_a_second, "once", caller, 0.0)

    def run(self, seconds: float) -> None:
        while self._events[0][0] < seconds:
            at_s, _, what, caller, impatience_s = heapq.heappop(self._events)
            self._clock.advance(self._began_s + at_s - self._clock.now_s())
            if what == "end":
                self._end(at_s)
            else:
                self._call(at_s, what, caller, impatience_s)
            self.n_inside.append(len(self._inside))

    def _at(self, at_s: float, what: str, caller: str, impatience_s: float) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), what, caller, impatience_s))

    def _end(self, at_s: float) -> None:
        self._at(at_s + 1 / CALLS_A_SECOND, "end", "", 0.0)
        if not self._inside:
            return
        # The inference queue serves the caller that was served least.
        caller, stack, impatience_s = min(self._inside, key=lambda one: self.answered[one[0]])
        self._inside.remove((caller, stack, impatience_s))
        stack.close()
        self.answered[caller] += 1
        if impatience_s >= 0:
            self._at(at_s + NETWORK_S, "call", caller, impatience_s)

    def _call(self, at_s: float, what: str, caller: str, impatience_s: float) -> None:
        stack = ExitStack()
        try:
            stack.enter_context(self._admission.call(caller))
        except (Overloaded, RateLimited) as refusal:
            wait_s = refusal.retry_after_s or MAX_WAIT_S
            if what == "retry":
                self.retries.append(False)
            if what != "once":
                late_s = NETWORK_S + self._random.uniform(0, 0.1)
                wait_s = impatience_s or wait_s + late_s
                self._at(at_s + wait_s, "call" if impatience_s else "retry", caller, impatience_s)
            return
        if what == "retry":
            self.retries.append(True)
        self._inside.append((caller, stack, -1.0 if what == "once" else impatience_s))

    @property
    def part_true(self) -> float:
        return sum(self.retries) / len(self.retries)


def jain(shares: list[int]) -> float:
    """1 if all shares are equal, 1/n if one has everything (Jain, Chiu and Hawe, 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(one**2 for one in shares))


@pytest.mark.parametrize(("n_callers", "n_calls"), [(600, 1), (100, 6), (20, 30), (2, 300), (1, 100)])
def test_callers_that_retry_at_the_requested_time_find_a_slot(n_callers: int, n_calls: int):
    bench = Bench()
    for i in range(n_callers):
        bench.add(f"caller {i}", n_calls)
    bench.run(120.0)
    assert len(bench.retries) > 1000
    # With few callers, another call of the same caller often comes first: nobody can tell which of them is the retry.
    assert bench.part_true > (0.9 if n_callers >= 100 else 0.2)
    assert sum(bench.answered.values()) > 0.97 * 120 * CALLS_A_SECOND


def test_callers_of_different_greed_have_equal_shares_whether_they_wait_or_not():
    bench = Bench()
    names = [f"caller {i}" for i in range(100)]
    for i, name in enumerate(names):
        bench.add(name, 1 + i % 10, impatience_s=0.3 if i % 3 == 0 else 0.0)
    bench.run(240.0)
    assert jain([bench.answered[name] for name in names]) > 0.95
    assert bench.part_true > 0.9


def test_calls_that_are_never_repeated_leave_no_slots_unused():
    bench = Bench()
    for i in range(10):
        bench.flood(f"caller {i}", CALLS_A_SECOND, 60.0)
    bench.run(60.0)
    assert min(bench.n_inside[-2000:]) >= 0.7 * 64
    assert sum(bench.answered.values()) > 0.97 * 60 * CALLS_A_SECOND


def test_a_new_caller_finds_a_slot_beside_callers_that_hold_many():
    clock = FakeClock()
    admission = Admission(AdmissionOptions(max_calls=8), clock)
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(admission.call("many"))
        for _ in range(100):
            with pytest.raises(RateLimited), admission.call("many"):
                pytest.fail("let in")
        with admission.call("one"), admission.call("another"):
            pass


def test_a_slot_is_kept_for_a_caller_that_is_due_but_not_for_ever():
    clock = FakeClock()
    admission = Admission(AdmissionOptions(max_calls=4), clock)
    with ExitStack() as stack:
        for name in "abcd":
            stack.enter_context(admission.call(name))
        with pytest.raises(Overloaded) as refused, admission.call("waits"):
            pytest.fail("let in")
    wait_s = refused.value.retry_after_s
    assert wait_s is not None
    with ExitStack() as stack:
        for name in "abc":
            stack.enter_context(admission.call(name))
        clock.advance(wait_s)
        with pytest.raises(Overloaded), admission.call("does not wait"):
            pytest.fail("let in")
        with admission.call("waits"):
            pass
    with ExitStack() as stack:
        for name in "abc":
            stack.enter_context(admission.call(name))
        clock.advance(MAX_WAIT_S + GRACE_S)
        with admission.call("another"):
            pass


def test_bookings_are_bounded_and_expire():
    times = RetryTimes()
    waits_s = [times.book(f"caller {i}", 0.0) for i in range(2 * MAX_BOOKINGS)]
    assert max(waits_s) == MAX_WAIT_S
    assert 0 < times.n_booked <= MAX_BOOKINGS
    assert times.n_kept("another", {}, 0.0)[0] <= AHEAD_S / min(waits_s)
    times.book("a last one", MAX_WAIT_S + 2 * GRACE_S)
    assert times.n_booked == 1
