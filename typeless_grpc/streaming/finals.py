"""From what the engine heard in one piece of audio to the segments that a stream sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Suppressed, Transcript, Word, joined, retimed_words
from typeless_grpc.streaming.stability import merged, tokens_of


@dataclass(frozen=True)
class Piece:
    """Audio that is decoded in one go. Samples of the stream: speech without its padding, audio with it, end exclusive.

    id: 0, 1, 2, … in the order of time.
    """

    id: int
    speech_start: int
    speech_end: int
    audio_start: int
    audio_end: int
    options: DecodeOptions


def text_of(recognition: Recognition) -> str:
    """All it heard, as one line."""
    return joined(segment.text for segment in recognition.transcript.segments).strip()


def confidence_of(recognition: Recognition) -> float:
    """Of its least certain segment; 0 where nothing was heard."""
    return min((segment.confidence for segment in recognition.transcript.segments), default=0.0)


def utterance_segment(piece: Piece, recognition: Recognition | None, committed: str) -> Segment | None:
    """One segment for an utterance, beginning with what was committed; None where nothing was said.

    recognition: None where the engine could not be asked.
    """
    heard = recognition.transcript.segments if recognition is not None else ()
    text = merged(committed, text_of(recognition) if recognition is not None else "")
    if not text:
        return None
    start_s, end_s = piece.speech_start / SAMPLE_RATE_HZ, piece.speech_end / SAMPLE_RATE_HZ
    words = retimed_words([word for segment in heard for word in segment.words], _clock(piece))
    if words:
        words = _as_written(text, words)
    if words:
        start_s, end_s = min(start_s, words[0].start_s), max(end_s, words[-1].end_s)
    longest = max(heard, key=lambda segment: segment.end_s - segment.start_s, default=None)
    return Segment(
        start_s,
        end_s,
        text,
        language=longest.language if longest is not None else piece.options.language or "",
        confidence=_mean_confidence(heard),
        no_speech_probability=max((segment.no_speech_probability for segment in heard), default=0.0),
        words=words,
    )


def file_segments(piece: Piece, recognition: Recognition) -> list[Segment]:
    """The engine's own segments, on the clock of the stream."""
    return [moved(segment, piece) for segment in recognition.transcript.segments if segment.text]


def suppressed_in(piece: Piece, recognition: Recognition) -> list[Suppressed]:
    """What the engine kept out, on the clock of the stream."""
    return [replace(one, segment=moved(one.segment, piece)) for one in recognition.transcript.suppressed]


def moved(segment: Segment, piece: Piece) -> Segment:
    """A segment of a piece on the clock of the stream, not reaching out of the piece."""
    return segment.retimed(_clock(piece))


def transcript_of(
    segments: Sequence[Segment],
    suppressed: Sequence[Suppressed],
    languages: LanguageTally,
    *,
    audio_s: float,
    speech_s: float,
    model: str,
    raw_text: str,
) -> Transcript:
    """The whole session's transcript."""
    language, probability = languages.main()
    spoken_s = min(speech_s, audio_s)
    return Transcript(
        tuple(segments), tuple(suppressed), language, probability, audio_s, spoken_s, model, raw_text=raw_text
    )


def _clock(piece: Piece) -> Callable[[float], float]:
    """From the time of a piece to that of the stream, not reaching out of the piece."""
    start_s, end_s = piece.audio_start / SAMPLE_RATE_HZ, piece.audio_end / SAMPLE_RATE_HZ
    return lambda time_s: min(max(start_s, start_s + time_s), end_s)


def _as_written(text: str, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words of text with the times of those heard: the same ones unless something else was committed."""
    if "".join("".join(word.text.split()) for word in words) == "".join(text.split()):
        return words
    written = [token.strip() for token in tokens_of(text)]
    last = len(words) - 1
    paired = [words[min(last, i * len(words) // len(written))] for i in range(len(written))]
    return tuple(replace(word, text=token) for token, word in zip(written, paired, strict=True))


def _mean_confidence(segments: Sequence[Segment]) -> float:
    """The geometric mean, by length."""
    seconds = [max(segment.end_s - segment.start_s, 0.01) for segment in segments]
    if not seconds:
        return 0.0
    logs = sum(s * math.log(max(segment.confidence, 1e-6)) for s, segment in zip(seconds, segments, strict=True))
    return min(1.0, math.exp(logs / sum(seconds)))
