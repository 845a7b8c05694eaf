"""Transcripts and their parts. Times are seconds from the start of the recording."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True)
class Word:
    """A word as it is written in its segment's text, without surrounding space. confidence: in [0, 1]."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, at most about 30 s.

    confidence: in [0, 1], the geometric mean of the token probabilities. no_speech_probability: in [0, 1], as the model
    estimates it. words: empty unless requested. channel: 0-based.
    """

    start_s: float
    end_s: float
    text: str
    language: str
    confidence: float
    no_speech_probability: float
    words: tuple[Word, ...] = ()
    channel: int = 0

    def retimed(self, clock: Callable[[float], float]) -> Segment:
        """Return this segment with its times on another clock. clock: maps a time, and never decreases."""
        words = retimed_words(self.words, clock)
        return replace(self, start_s=clock(self.start_s), end_s=clock(self.end_s), words=words)


def retimed_words(words: Sequence[Word], clock: Callable[[float], float]) -> tuple[Word, ...]:
    """Return the words with their times on another clock, each starting no earlier than the one before it."""
    retimed: list[Word] = []
    earliest_s = float("-inf")
    for word in words:
        earliest_s = max(earliest_s, clock(word.start_s))
        retimed.append(replace(word, start_s=earliest_s, end_s=max(earliest_s, clock(word.end_s))))
    return tuple(retimed)


class SuppressionReason(Enum):
    """Why text that the model returned is not part of the transcript."""

    NO_SPEECH = "no_speech"
    REPETITION = "repetition"
    LOW_CONFIDENCE = "low_confidence"


@dataclass(frozen=True)
class Suppressed:
    """Text that is not part of the transcript, and why."""

    segment: Segment
    reason: SuppressionReason


class OutputFormat(Enum):
    """A file format for transcripts."""

    TEXT = "text"
    SRT = "srt"
    WEBVTT = "webvtt"
    JSON = "json"
    TSV = "tsv"


@dataclass(frozen=True)
class Rendition:
    """A transcript in a file format. content: the whole file."""

    format: OutputFormat
    content: str


@dataclass(frozen=True)
class Transcript:
    """The transcript of one recording, in order of time.

    language: Whisper's code, "" if there is no speech and the request named none. language_probability: in [0, 1]; 1 if
    the request named the language. speech_s: the part of audio_s that is speech. raw_text: the text before
    post-processing, "" if none was requested. renditions: one for each requested format.
    """

    segments: tuple[Segment, ...]
    suppressed: tuple[Suppressed, ...]
    language: str
    language_probability: float
    audio_s: float
    speech_s: float
    model: str
    raw_text: str = ""
    renditions: tuple[Rendition, ...] = ()

    @property
    def text(self) -> str:
        """Every segment's text, joined by a space where the script uses spaces."""
        return joined(segment.text for segment in self.segments)

    def shifted(self, offset_s: float) -> Transcript:
        """Return this transcript with all its times later by offset_s."""

        def clock(time_s: float) -> float:
            return time_s + offset_s

        return replace(
            self,
            segments=tuple(segment.retimed(clock) for segment in self.segments),
            suppressed=tuple(replace(one, segment=one.segment.retimed(clock)) for one in self.suppressed),
        )


# Scripts written without spaces between words, and their punctuation: Thai, Lao, Burmese, Khmer, the Japanese syllables
# and their marks, Han characters, and the full-width forms.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003fffd"
)
_SEAM = re.compile(f"[{UNSPACED}] [{UNSPACED}]")


def joined(texts: Iterable[str]) -> str:
    """Join texts, with a space between two unless both their scripts are written without spaces."""
    whole = ""
    for text in texts:
        if not text:
            continue
        seam = f"{whole[-1:]} {text[0]}"
        whole += text if not whole or _SEAM.match(seam) else f" {text}"
    return whole
