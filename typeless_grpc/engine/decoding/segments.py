"""From a hypothesis to segments: one for each sentence if its words have times, else one for the whole text."""

from __future__ import annotations

from collections.abc import Sequence

from typeless_grpc.engine.decoding.quality import compression_ratio
from typeless_grpc.engine.decoding.requests import Window
from typeless_grpc.engine.decoding.sentences import SentencePolicy, sentences
from typeless_grpc.engine.model import Hypothesis, RawSegment, TimedWord
from typeless_grpc.speech.transcript import Segment, Word


def segments_of(
    window: Window, hypothesis: Hypothesis, words: Sequence[TimedWord], *, language: str, end_s: float
) -> tuple[RawSegment, ...]:
    """Return the segments of a window. words: of the text, or none; without words the segment ends at end_s."""
    printed = [word for word in words if word.text.strip()]
    groups = [(group[0].start_s, group[-1].end_s, group) for group in sentences(printed, SentencePolicy())]
    if not groups and hypothesis.text:
        groups = [(window.spans_s[0][0], end_s, [])]
    ratio = compression_ratio(hypothesis.text)
    return tuple(
        RawSegment(_segment(window, hypothesis, language, start_s, end_s, group), hypothesis.avg_logprob, ratio)
        for start_s, end_s, group in groups
    )


def _segment(
    window: Window,
    hypothesis: Hypothesis,
    language: str,
    start_s: float,
    end_s: float,
    words: Sequence[TimedWord],
) -> Segment:
    return Segment(
        start_s=min(start_s, window.audio_s),
        end_s=min(end_s, window.audio_s),
        text="".join(word.text for word in words).strip() if words else hypothesis.text,
        language=language,
        confidence=hypothesis.confidence,
        no_speech_probability=hypothesis.no_speech_probability,
        words=tuple(word_of(word, window.audio_s) for word in words),
    )


def word_of(word: TimedWord, audio_s: float) -> Word:
    """Return a word of the transcript, its times limited to the audio and its confidence to [0, 1]."""
    return Word(
        word.text.strip(), min(word.start_s, audio_s), min(word.end_s, audio_s), min(1.0, max(0.0, word.probability))
    )
