from __future__ import annotations

import pytest

from typeless_grpc.clock import FakeClock, SystemClock


def test_the_systems_clock_never_goes_back():
    clock = SystemClock()
    assert clock.now_s() <= clock.now_s()


def test_a_fake_clock_moves_only_when_advanced():
    clock = FakeClock(10.0)
    assert clock.now_s() == clock.now_s() == 10.0
    clock.advance(2.5)
    assert clock.now_s() == 12.5


def test_a_fake_clock_does_not_go_back():
    with pytest.raises(AssertionError):
        FakeClock().advance(-1)
