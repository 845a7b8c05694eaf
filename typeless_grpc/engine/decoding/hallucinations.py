"""The hallucination filter: suppresses text that the model wrote and nobody spoke.

`recognizer.py` filters the result of every chunk, and reports suppressed text with its reason. `plan_decoder.py`
filters the text that a chunk is conditioned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.loops import repeats_itself
from typeless_grpc.engine.decoding.quality import Issue, is_too_fast
from typeless_grpc.engine.decoding.requests import DecodeResult
from typeless_grpc.engine.model import (
    COMPRESSION_RATIO_THRESHOLD,
    LOG_PROB_THRESHOLD,
    NO_SPEECH_THRESHOLD,
    RawSegment,
)
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason

# Least confidence of a text for unlikely speech: docs/measurements/speech.md.
UNLIKELY_SPEECH_CONFIDENCE = 0.85


@dataclass(frozen=True)
class Filtered:
    """The segments of a chunk, and the text that was suppressed; times are those of the recording."""

    segments: tuple[Segment, ...]
    suppressed: tuple[Suppressed, ...]


def filter_hallucinations(result: DecodeResult, chunk: Chunk, unlikely: Sequence[Span] = ()) -> Filtered:
    """Suppress the segments of a chunk that nobody spoke. unlikely: see `DetectedSpeech`."""
    segments = []
    suppressed = [
        Suppressed(one.segment.retimed(chunk.recording_s), SuppressionReason.REPETITION) for one in result.looped
    ]
    for one in result.segments:
        segment = one.segment.retimed(chunk.recording_s)
        reason = _reason(one, result)
        is_unconfident = segment.confidence < UNLIKELY_SPEECH_CONFIDENCE
        if not reason and is_unconfident and _is_mostly_unlikely(segment, unlikely, chunk):
            reason = SuppressionReason.NO_SPEECH
        if reason:
            suppressed.append(Suppressed(segment, reason))
        else:
            segments.append(segment)
    return Filtered(tuple(segments), tuple(suppressed))


def _reason(one: RawSegment, result: DecodeResult) -> SuppressionReason | None:
    segment = one.segment
    if segment.no_speech_probability > NO_SPEECH_THRESHOLD and one.avg_logprob < LOG_PROB_THRESHOLD:
        return SuppressionReason.NO_SPEECH
    if one.compression_ratio > COMPRESSION_RATIO_THRESHOLD and _is_loop(segment):
        return SuppressionReason.REPETITION
    if Issue.CUT_OFF in result.issues:  # it is no text of this audio, and the second pass did not help
        return SuppressionReason.LOW_CONFIDENCE
    return None


def _is_mostly_unlikely(segment: Segment, unlikely: Sequence[Span], chunk: Chunk) -> bool:
    """Whether more than half of the segment's speech is unlikely."""
    if not unlikely:
        return False
    start, end = segment.start_s * SAMPLE_RATE_HZ, segment.end_s * SAMPLE_RATE_HZ
    n_unlikely, n_all = (
        sum(max(0.0, min(span.end, end) - max(span.start, start)) for span in spans)
        for spans in (unlikely, chunk.speech)
    )
    return 2 * n_unlikely > n_all


def _is_loop(segment: Segment) -> bool:
    """Whether a text repeats itself more often than there is time for."""
    return repeats_itself(segment.text) and is_too_fast(segment.text, segment.end_s - segment.start_s)
