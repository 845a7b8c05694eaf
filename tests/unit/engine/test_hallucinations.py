from __future__ import annotations

from dataclasses import replace

import pytest

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.hallucinations import filter_hallucinations
from typeless_grpc.engine.decoding.quality import Issue
from typeless_grpc.engine.decoding.requests import DecodeResult
from typeless_grpc.engine.model import RawSegment
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.speech.transcript import Segment, SuppressionReason, Word

SPOKEN = RawSegment(
    Segment(
        start_s=0.5,
        end_s=2.0,
        text="hello there",
        language="en",
        confidence=0.9,
        no_speech_probability=0.1,
        words=(Word("hello", 0.5, 1.0, 0.9), Word("there", 1.2, 2.0, 0.8)),
    ),
    avg_logprob=-0.2,
    compression_ratio=1.1,
)


LOOP = "thank you " * 8  # in 1.5 s


def chunk(start_s: float, end_s: float) -> Chunk:
    span = Span(round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ))
    return Chunk(span.start, span.end, (span,), max_pause=span.end)


def raw(
    *, no_speech: float = 0.1, avg_logprob: float = -0.2, compression_ratio: float = 1.1, text: str = "hello there"
) -> RawSegment:
    segment = replace(SPOKEN.segment, no_speech_probability=no_speech, text=text)
    return replace(SPOKEN, segment=segment, avg_logprob=avg_logprob, compression_ratio=compression_ratio)


def test_times_are_converted_to_those_of_the_recording():
    (segment,) = filter_hallucinations(DecodeResult((SPOKEN,), "en", 1.0), chunk(60.0, 70.0)).segments
    assert (segment.start_s, segment.end_s) == (60.5, 62.0)
    assert [(word.text, word.start_s, word.end_s) for word in segment.words] == [
        ("hello", 60.5, 61.0),
        ("there", 61.2, 62.0),
    ]


def test_segments_keep_their_order():
    result = filter_hallucinations(DecodeResult((raw(text="one"), raw(text="two")), "en", 1.0), chunk(0.0, 5.0))
    assert [segment.text for segment in result.segments] == ["one", "two"]


@pytest.mark.parametrize(
    ("made_up", "reason"),
    [
        pytest.param(raw(no_speech=0.9, avg_logprob=-1.5), SuppressionReason.NO_SPEECH, id="no speech"),
        pytest.param(raw(compression_ratio=9.0, text=LOOP), SuppressionReason.REPETITION, id="repetition"),
    ],
)
def test_suppressed_text_has_its_reason_and_its_time(made_up: RawSegment, reason: SuppressionReason):
    result = filter_hallucinations(DecodeResult((raw(text="spoken"), made_up), "en", 1.0), chunk(10.0, 20.0))
    assert [segment.text for segment in result.segments] == ["spoken"]
    (suppressed,) = result.suppressed
    assert suppressed.reason is reason
    assert (suppressed.segment.start_s, suppressed.segment.text) == (10.5, made_up.segment.text)


@pytest.mark.parametrize(
    "spoken",
    [
        pytest.param(raw(no_speech=0.9), id="no speech, but probable"),
        pytest.param(raw(avg_logprob=-1.5), id="improbable, but speech"),
        pytest.param(raw(compression_ratio=9.0), id="compressed well, but no loop"),
        pytest.param(raw(compression_ratio=9.0, text="thank you " * 3), id="spoken three times, with time for it"),
    ],
)
def test_one_sign_alone_does_not_suppress_a_text(spoken: RawSegment):
    result = filter_hallucinations(DecodeResult((spoken,), "en", 1.0), chunk(0.0, 5.0))
    assert result.suppressed == ()
    assert len(result.segments) == 1


def test_removed_repetitions_are_reported():
    (suppressed,) = filter_hallucinations(
        DecodeResult((raw(),), "en", 1.0, looped=(raw(text="there there"),)), chunk(10.0, 20.0)
    ).suppressed
    assert (suppressed.segment.text, suppressed.reason) == ("there there", SuppressionReason.REPETITION)


@pytest.mark.parametrize(
    ("issue", "is_kept"),
    [(Issue.CUT_OFF, False), (Issue.TOO_FAST, True), (Issue.LOW_CONFIDENCE, True)],
)
def test_text_that_is_cut_off_is_suppressed(issue: Issue, is_kept: bool):
    result = filter_hallucinations(DecodeResult((raw(),), "en", 1.0, issues=frozenset({issue})), chunk(0.0, 5.0))
    assert bool(result.segments) is is_kept
    assert [one.reason for one in result.suppressed] == ([] if is_kept else [SuppressionReason.LOW_CONFIDENCE])


@pytest.mark.parametrize(
    ("confidence", "unlikely", "is_kept"),
    [
        pytest.param(0.9, (Span(0, 40_000),), True, id="confident"),
        pytest.param(0.8, (Span(0, 40_000),), False, id="not-confident"),
        pytest.param(0.8, (), True, id="all-speech-likely"),
        pytest.param(0.8, (Span(30_000, 40_000),), True, id="unlikely-at-its-end-only"),
    ],
)
def test_text_over_unlikely_speech_needs_confidence(confidence: float, unlikely: tuple[Span, ...], is_kept: bool):
    one = replace(SPOKEN, segment=replace(SPOKEN.segment, confidence=confidence))
    result = filter_hallucinations(DecodeResult((one,), "en", 1.0), chunk(0.0, 5.0), unlikely)
    assert bool(result.segments) == is_kept
    assert [suppressed.reason for suppressed in result.suppressed] == [SuppressionReason.NO_SPEECH] * (not is_kept)
