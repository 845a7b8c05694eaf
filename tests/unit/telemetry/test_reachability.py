"""Data that stays in use while its source is unavailable has a known age."""

from __future__ import annotations

import time

import pytest

from typeless_grpc.clock import FakeClock
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.reachability import Freshness

CONSEQUENCE = "revoked keys are still accepted here"
READ_AT = "typeless_key_store_read_timestamp_seconds"


def test_keys_that_cannot_be_read_for_long_are_an_error_each_minute(caplog: pytest.LogCaptureFixture):
    clock = FakeClock()
    fresh = Freshness(CONSEQUENCE, Metrics().keys_read, 60.0, clock.now_s)
    for _ in range(13):
        clock.advance(10.0)
        fresh.report(False)
    assert caplog.text.count(CONSEQUENCE) == 2
    fresh.report(True)
    clock.advance(59.0)
    fresh.report(False)
    assert caplog.text.count(CONSEQUENCE) == 2


def test_the_gauge_has_the_time_of_the_last_answer_and_stays_there_without_one():
    metrics = Metrics()
    fresh = Freshness(CONSEQUENCE, metrics.keys_read, 60.0)
    fresh.report(True)
    read_s = metrics.registry.get_sample_value(READ_AT)
    assert read_s == pytest.approx(time.time(), abs=10)
    fresh.report(False)
    assert metrics.registry.get_sample_value(READ_AT) == read_s
