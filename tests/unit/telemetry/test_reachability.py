"""What is used as it was last read says how old it is."""

from __future__ import annotations

import time

import pytest

from typeless_grpc.clock import FakeClock
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.reachability import Freshness

WHAT = "revoked keys are still good here"


def test_keys_that_cannot_be_read_for_long_are_an_error_each_minute(caplog: pytest.LogCaptureFixture):
    clock = FakeClock()
    fresh = Freshness(WHAT, Metrics().keys_read, 60.0, clock.now_s)
    for _ in range(13):
        clock.advance(10.0)
        fresh.report(False)
    assert caplog.text.count(WHAT) == 2
    fresh.report(True)
    clock.advance(59.0)
    fresh.report(False)
    assert caplog.text.count(WHAT) == 2


def test_the_gauge_has_the_time_of_the_last_answer_and_stays_there_while_there_is_none():
    metrics = Metrics()
    fresh = Freshness(WHAT, metrics.keys_read, 60.0)
    fresh.report(True)
    read_s = metrics.keys_read._value.get()
    assert read_s == pytest.approx(time.time(), abs=10)
    fresh.report(False)
    assert metrics.keys_read._value.get() == read_s
