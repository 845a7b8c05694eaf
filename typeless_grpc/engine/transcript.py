"""What was said: words, segments, transcripts. Times are seconds from the start of the recording."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Word:
    """A word as it stands in its segment's text, without the space around it. confidence: in [0, 1]."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """One stretch of speech, at most about 30 s.

    confidence: in [0, 1], the geometric mean of the token probabilities. no_speech_probability: in [0, 1], the model's
    own that nothing was said. words: empty unless they were asked for. channel: 0-based.
    """

    start_s: float
    end_s: float
    text: str
    language: str
    confidence: float
    no_speech_probability: float
    words: tuple[Word, ...] = ()
    channel: int = 0


class SuppressionReason(Enum):
    """Why text that the model produced is not part of the transcript."""

    NO_SPEECH = "no_speech"
    REPETITION = "repetition"
    LOW_CONFIDENCE = "low_confidence"


@dataclass(frozen=True)
class Suppressed:
    """Text kept out of a transcript, and why."""

    segment: Segment
    reason: SuppressionReason


class OutputFormat(Enum):
    """A file format that a transcript can be written out in."""

    TEXT = "text"
    SRT = "srt"
    WEBVTT = "webvtt"
    JSON = "json"
    TSV = "tsv"


@dataclass(frozen=True)
class Rendition:
    """A transcript written out. content: the whole file."""

    format: OutputFormat
    content: str


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording, in the order of time.

    language: Whisper's code, "" where nothing was said and none was given; language_probability: in [0, 1], 1 where the
    caller named the language. speech_s: the part of audio_s that held speech. raw_text: as recognized, "" where no
    post-processing was asked for. renditions: one for each format that was asked for.
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


# Scripts written without spaces between words, and their punctuation: Thai, Lao, Burmese, Khmer, the Japanese syllables
# and their marks, Han characters, and the full-width forms.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003fffd"
)
_SEAM = re.compile(f"[{UNSPACED}] [{UNSPACED}]")


def joined(texts: Iterable[str]) -> str:
    """Texts one after the other, with a space between two unless both their scripts do without."""
    whole = ""
    for text in texts:
        if not text:
            continue
        seam = f"{whole[-1:]} {text[0]}"
        whole += text if not whole or _SEAM.match(seam) else f" {text}"
    return whole
