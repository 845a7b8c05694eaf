from __future__ import annotations

from concurrent.futures import Executor

import pytest

from typeless_grpc.account import CallAccount
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.streaming.dependencies import Dependencies
from typeless_grpc.streaming.meter import StreamMeter


@pytest.fixture
def meter() -> StreamMeter:
    return StreamMeter(Dependencies(ScriptedEngine(), LoudnessDetector(), Executor(), FakeClock()), "live")


def test_audio_counts_once_for_the_calls_that_have_the_stream(meter: StreamMeter):
    ended, resumed = CallAccount(), CallAccount()
    with meter.counted_for(ended):
        meter.reached(SAMPLE_RATE_HZ)
        assert ended.audio_s == 1.0
        meter.reached(3 * SAMPLE_RATE_HZ)
    meter.reached(6 * SAMPLE_RATE_HZ)  # was in the inbox when the call ended
    with meter.counted_for(resumed):
        assert resumed.audio_s == 3.0
        meter.reached(10 * SAMPLE_RATE_HZ)
    assert (ended.audio_s, resumed.audio_s, meter.account.audio_s) == (3.0, 7.0, 10.0)


def test_audio_counts_for_the_call_that_resumed_while_the_older_one_has_not_ended(meter: StreamMeter):
    older, newer = CallAccount(), CallAccount()
    with meter.counted_for(older), meter.counted_for(newer):
        meter.reached(SAMPLE_RATE_HZ)
    assert (older.audio_s, newer.audio_s) == (0.0, 1.0)
