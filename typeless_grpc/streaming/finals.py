"""Makes the segments of a stream from what the engine returned for one utterance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.interface import Recognition
from typeless_grpc.speech.transcript import Segment, Suppressed, Word, joined, retimed_words
from typeless_grpc.streaming.stability import merged, tokens_of
from typeless_grpc.streaming.utterances import Utterance


def text_of(recognition: Recognition) -> str:
    """Return the whole text in one line."""
    return joined(segment.text for segment in recognition.transcript.segments).strip()


def confidence_of(recognition: Recognition) -> float:
    """Return the confidence of the least confident segment; 0 if there is none."""
    return min((segment.confidence for segment in recognition.transcript.segments), default=0.0)


def live_segments(utterance: Utterance, recognition: Recognition | None, committed: str) -> list[Segment]:
    """Return one segment for an utterance, or none if it has no text.

    The text begins with the committed words. recognition: None if the utterance could not be decoded.
    """
    decoded = recognition.transcript.segments if recognition is not None else ()
    text = merged(committed, text_of(recognition) if recognition is not None else "")
    if not text:
        return []
    start_s, end_s = utterance.speech_start / SAMPLE_RATE_HZ, utterance.speech_end / SAMPLE_RATE_HZ
    words = retimed_words([word for segment in decoded for word in segment.words], _clock(utterance))
    if words:
        words = _as_written(text, words)
    if words:
        start_s, end_s = min(start_s, words[0].start_s), max(end_s, words[-1].end_s)
    longest = max(decoded, key=lambda segment: segment.end_s - segment.start_s, default=None)
    segment = Segment(
        start_s,
        end_s,
        text,
        language=longest.language if longest is not None else utterance.options.language or "",
        confidence=mean_confidence(decoded),
        no_speech_probability=max((segment.no_speech_probability for segment in decoded), default=0.0),
        words=words,
    )
    return [segment]


def file_segments(chunk: Utterance, recognition: Recognition | None) -> list[Segment]:
    """Return the engine's segments of a chunk, with times of the stream; none if the chunk could not be decoded."""
    decoded = recognition.transcript.segments if recognition is not None else ()
    return [_moved(segment, chunk) for segment in decoded if segment.text]


def suppressed_in(utterance: Utterance, recognition: Recognition) -> list[Suppressed]:
    """Return what the engine suppressed, with times of the stream."""
    return [replace(one, segment=_moved(one.segment, utterance)) for one in recognition.transcript.suppressed]


def _moved(segment: Segment, utterance: Utterance) -> Segment:
    return segment.retimed(_clock(utterance))


def _clock(utterance: Utterance) -> Callable[[float], float]:
    """Return a function from seconds of an utterance to seconds of the stream, within the utterance."""
    start_s, end_s = utterance.audio_start / SAMPLE_RATE_HZ, utterance.audio_end / SAMPLE_RATE_HZ
    return lambda time_s: min(max(start_s, start_s + time_s), end_s)


def _as_written(text: str, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """Return the words of text with the times of the decoded words.

    They differ only where another word was committed.
    """
    if "".join("".join(word.text.split()) for word in words) == "".join(text.split()):
        return words
    written = [token.strip() for token in tokens_of(text)]
    last = len(words) - 1
    paired = [words[min(last, i * len(words) // len(written))] for i in range(len(written))]
    return tuple(replace(word, text=token) for token, word in zip(written, paired, strict=True))


def mean_confidence(segments: Sequence[Segment]) -> float:
    """Return the geometric mean of the confidences, weighted by length; 0 if there are no segments."""
    seconds = [max(segment.end_s - segment.start_s, 0.01) for segment in segments]
    if not seconds:
        return 0.0
    logs = sum(s * math.log(max(segment.confidence, 1e-6)) for s, segment in zip(seconds, segments, strict=True))
    return min(1.0, math.exp(logs / sum(seconds)))
