"""Time passes evenly, whatever is done to the clock that it follows."""

from __future__ import annotations

import pytest

from typeless_grpc.clock import FakeClock
from typeless_grpc.stores.steady import SLEW, SteadyClock

T0 = 1_800_000_000.0


def followed(clock: FakeClock, *, offset_s: float, seconds: int, steady: SteadyClock) -> float:
    """How much time passed for the follower, while the clock that it looks at each second was offset."""
    before_s = steady.now_s()
    for _ in range(seconds):
        clock.advance(1.0)
        steady.follow(T0 + clock.now_s() + offset_s)
    return steady.now_s() - before_s


def test_the_first_reading_is_taken_and_time_passes_between_readings():
    clock = FakeClock()
    steady = SteadyClock(clock.now_s)
    assert steady.is_due
    steady.follow(T0)
    assert not steady.is_due
    clock.advance(0.5)
    assert steady.now_s() == T0 + 0.5
    clock.advance(0.5)
    assert steady.is_due


@pytest.mark.parametrize(("leap_s", "rate"), [(86_400.0, 1 + SLEW), (-86_400.0, 1 - SLEW)], ids=["ahead", "back"])
def test_a_step_is_followed_slowly(leap_s: float, rate: float, caplog: pytest.LogCaptureFixture):
    clock = FakeClock()
    steady = SteadyClock(clock.now_s)
    steady.follow(T0)
    assert followed(clock, offset_s=leap_s, seconds=1000, steady=steady) == pytest.approx(1000 * rate)
    assert caplog.text.count("clock of the database was set") == 1


def test_a_step_that_is_reversed_has_little_effect():
    clock = FakeClock()
    steady = SteadyClock(clock.now_s)
    steady.follow(T0)
    followed(clock, offset_s=86_400.0, seconds=100, steady=steady)
    followed(clock, offset_s=0.0, seconds=200, steady=steady)
    assert steady.now_s() == pytest.approx(T0 + 300)


def test_a_drifting_clock_is_followed():
    clock = FakeClock()
    steady = SteadyClock(clock.now_s)
    steady.follow(T0)
    for n in range(1, 100):
        clock.advance(1.0)
        steady.follow(T0 + n * 1.05)
        assert steady.now_s() == pytest.approx(T0 + n * 1.05)
