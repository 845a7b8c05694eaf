"""What a stream reports to observers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

from typeless_grpc import account
from typeless_grpc.account import CallAccount
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.speech.transcript import Segment
from typeless_grpc.streaming import events
from typeless_grpc.streaming.dependencies import Dependencies
from typeless_grpc.streaming.meter import StreamMeter
from typeless_grpc.streaming.observer import NoStreamObserver


class Recorded(NoStreamObserver):
    def __init__(self) -> None:
        self.finals: list[tuple[str, float | None]] = []
        self.interims: list[str] = []

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        self.finals.append((mode, latency_s))

    def interim(self, outcome: str) -> None:
        self.interims.append(outcome)


def metered() -> tuple[StreamMeter, Recorded, FakeClock]:
    observer, clock = Recorded(), FakeClock()
    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(ScriptedEngine(), LoudnessDetector(), threads, clock, observer=observer)
    return StreamMeter(dependencies, "live"), observer, clock


def final(end_s: float) -> events.Final:
    return events.Final(0, Segment(0.0, end_s, "text", language="en", confidence=0.9, no_speech_probability=0.0))


def test_latency_counts_from_the_arrival_of_the_end_of_speech_and_not_from_its_decoding():
    meter, observer, clock = metered()
    meter.put()  # the first second of audio
    clock.advance(1.0)
    meter.put()  # the next one
    clock.advance(10.0)  # a busy server
    meter.taken()
    meter.reached(16_000)
    meter.taken()
    meter.reached(32_000)
    clock.advance(0.5)
    meter.emitted(final(0.75))
    meter.emitted(final(1.0))
    meter.emitted(final(1.5))
    assert observer.finals == [("live", 11.5), ("live", 11.5), ("live", 10.5)]


def test_a_final_whose_audio_is_not_remembered_has_no_latency():
    meter, observer, _ = metered()
    meter.emitted(final(1.0))
    for number in range(1, 5000):
        meter.put()
        meter.taken()
        meter.reached(number * 160)
    meter.emitted(final(0.005))
    assert observer.finals == [("live", None), ("live", None)]


def test_interims_are_counted_as_sent_or_unread():
    meter, observer, _ = metered()
    meter.emitted(events.Interim("", "text", 0.0, 1.0))
    meter.unread()
    meter.emitted(events.SpeechStart(0.0))
    assert observer.interims == ["sent", "unread"]


def test_work_of_a_stream_counts_on_its_own_account():
    meter, _, _ = metered()
    meter.context.run(lambda: account.current().add_audio(3.0))
    assert meter.account.audio_s == 3.0


def test_audio_counts_once_for_the_calls_that_have_the_stream():
    meter, _, _ = metered()
    ended, resumed = CallAccount(), CallAccount()
    with meter.counted_for(ended):
        meter.reached(16_000)
        assert ended.audio_s == 1.0
        meter.reached(3 * 16_000)
    meter.reached(6 * 16_000)  # was in the inbox when the call ended
    with meter.counted_for(resumed):
        assert resumed.audio_s == 3.0
        meter.reached(10 * 16_000)
    assert (ended.audio_s, resumed.audio_s, meter.account.audio_s) == (3.0, 7.0, 10.0)


def test_audio_counts_for_the_call_that_resumed_while_the_older_one_has_not_ended():
    meter, _, _ = metered()
    older, newer = CallAccount(), CallAccount()
    with meter.counted_for(older), meter.counted_for(newer):
        meter.reached(16_000)
    assert (older.audio_s, newer.audio_s) == (0.0, 1.0)
