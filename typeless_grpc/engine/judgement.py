"""What of the model's text was said, and what it only made up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from typeless_grpc.engine.cuts import Piece
from typeless_grpc.engine.transcript import Segment, Suppressed, SuppressionReason
from typeless_grpc.engine.verification import repeats_itself
from typeless_grpc.engine.whisper import NO_SPEECH_THRESHOLD, Heard, HeardSegment

# faster_whisper.transcribe.WhisperModel.transcribe, defaults of the thresholds of these names.
LOG_PROB_THRESHOLD = -1.0
COMPRESSION_RATIO_THRESHOLD = 2.4


@dataclass(frozen=True)
class Judged:
    """The segments of a piece, sorted into the two; times are the recording's."""

    segments: tuple[Segment, ...]
    suppressed: tuple[Suppressed, ...]


def judged(heard: Heard, piece: Piece) -> Judged:
    """Judge what was heard in a piece."""
    segments, suppressed = [], []
    for one in heard.segments:
        segment = _moved(one.segment, piece)
        if reason := _why_not_speech(one):
            suppressed.append(Suppressed(segment, reason))
        else:
            segments.append(segment)
    return Judged(tuple(segments), tuple(suppressed))


def _why_not_speech(heard: HeardSegment) -> SuppressionReason | None:
    if heard.segment.no_speech_probability > NO_SPEECH_THRESHOLD and heard.avg_logprob < LOG_PROB_THRESHOLD:
        return SuppressionReason.NO_SPEECH
    if heard.compression_ratio > COMPRESSION_RATIO_THRESHOLD and repeats_itself(heard.segment.text):
        return SuppressionReason.REPETITION
    return None


def _moved(segment: Segment, piece: Piece) -> Segment:
    clock = piece.original_s
    words = tuple(replace(word, start_s=clock(word.start_s), end_s=clock(word.end_s)) for word in segment.words)
    return replace(segment, start_s=clock(segment.start_s), end_s=clock(segment.end_s), words=words)
