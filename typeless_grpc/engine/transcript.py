"""What was said: words, segments, transcripts. Times are seconds from the start of the recording."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording, in the order of time.

    language: Whisper's code, "" where nothing was said and none was given; language_probability: in [0, 1], 1 where the
    caller named the language. speech_s: the part of audio_s that held speech.
    """

    segments: tuple[Segment, ...]
    suppressed: tuple[Suppressed, ...]
    language: str
    language_probability: float
    audio_s: float
    speech_s: float
    model: str

    @property
    def text(self) -> str:
        """Every segment's text, joined by a space where the script uses spaces."""
        between = "" if self.language in UNSPACED_LANGUAGES else " "
        return between.join(segment.text for segment in self.segments if segment.text)


# Written without spaces between words (faster_whisper.tokenizer.Tokenizer.split_to_word_tokens has the same list).
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
