"""The hallucination filter: which of the model's text was spoken, and which it made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.inference import DecodeResult
from typeless_grpc.engine.decoding.quality import COMPRESSION_RATIO_THRESHOLD, Issue, is_too_fast, repeats_itself
from typeless_grpc.engine.model import NO_SPEECH_THRESHOLD, RawSegment
from typeless_grpc.engine.planning.cuts import Piece
from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason

# faster_whisper.transcribe.WhisperModel.transcribe, default of the threshold of this name.
LOG_PROB_THRESHOLD = -1.0
# Least confidence of a text where the detector doubts that anyone speaks: docs/measurements/speech.md.
UNLIKELY_SPEECH_CONFIDENCE = 0.85


@dataclass(frozen=True)
class Filtered:
    """The segments of a piece, and the text that was kept out; times are the recording's."""

    segments: tuple[Segment, ...]
    suppressed: tuple[Suppressed, ...]


def filtered(result: DecodeResult, piece: Piece, unlikely: Sequence[Span] = ()) -> Filtered:
    """Keep out what was not spoken in a piece. unlikely: see `Plan`."""
    segments = []
    suppressed = [
        Suppressed(one.segment.retimed(piece.original_s), SuppressionReason.REPETITION) for one in result.looped
    ]
    for one in result.segments:
        segment = one.segment.retimed(piece.original_s)
        reason = _reason(one, result)
        if not reason and segment.confidence < UNLIKELY_SPEECH_CONFIDENCE and _is_mostly(segment, unlikely, piece):
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
    if Issue.CUT_OFF in result.issues:  # it is no text of this audio, and decoding it again did not help
        return SuppressionReason.LOW_CONFIDENCE
    return None


def _is_mostly(segment: Segment, unlikely: Sequence[Span], piece: Piece) -> bool:
    """Whether the segment has more unlikely than likely speech in it."""
    if not unlikely:
        return False
    start, end = segment.start_s * SAMPLE_RATE_HZ, segment.end_s * SAMPLE_RATE_HZ
    of_it, of_all = (
        sum(max(0.0, min(span.end, end) - max(span.start, start)) for span in spans)
        for spans in (unlikely, piece.speech)
    )
    return 2 * of_it > of_all


def _is_loop(segment: Segment) -> bool:
    """Whether a text repeats itself more often than there is time for."""
    return repeats_itself(segment.text) and is_too_fast(segment.text, segment.end_s - segment.start_s)
