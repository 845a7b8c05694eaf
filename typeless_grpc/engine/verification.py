"""Whether what came out of a short window can be trusted.

Shown too little silence, Whisper's decoder fails in a few recognizable ways: it says a phrase again and again, says far
more than the time allows, or stops early. Each check finds one of these from the text, where speech was heard, and the
times of the words where they are known; none needs the model. Constants were settled by measurement:
`docs/encoder-window.md`.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

# Above it lie scripts that are written without spaces between words (Unicode: CJK Radicals Supplement begins at 2E80).
LAST_SPACED_CODE_POINT = 0x2E7F
# A piece is sparse where it has less than this part of the usual text a second; slow speech stays above it.
SPARSE_RATE = 0.7
SPARSE_LEAST_S = 4.0
SPARSE_LEAST_PIECES = 4
PUNCTUATION = ".,!?;:\"'()[]-–—…。，！？、"


class Doubt(Enum):
    """Why a result is not to be trusted."""

    EMPTY = "empty"
    REPETITION = "repetition"
    COMPRESSION = "compression"
    TOO_FAST = "too_fast"
    TOO_SLOW = "too_slow"
    LOW_PROBABILITY = "low_probability"
    PAST_END = "past_end"
    EARLY_STOP = "early_stop"
    MIXED = "mixed"  # more than one language; told by the model's own detection, not by the checks here


@dataclass(frozen=True)
class Checks:
    """What a result must satisfy.

    short_compression: of a text under short_text_characters; compression: of a longer one (zlib, as in Whisper).
    past_end_s: how far a word may lie behind the end of the audio. unheard_s: speech after the last word.
    characters_per_s: least and most, of speech; the least only for alphabets and from 2 s of speech.
    """

    short_text_characters: int = 200
    short_compression: float = 1.6
    compression: float = 2.4
    past_end_s: float = 2.0
    unheard_s: float = 2.0
    least_characters_per_s: float = 6.0
    most_characters_per_s: float = 30.0
    least_avg_logprob: float = -1.0


@dataclass(frozen=True)
class Result:
    """A window's text and what is known of its audio; times in seconds of the window.

    speech_s: spans of speech. words_end_s: where the last word ends, None where no times are known.
    """

    text: str
    avg_logprob: float
    speech_s: Sequence[tuple[float, float]]
    audio_s: float
    words_end_s: float | None = None

    @property
    def spoken_s(self) -> float:
        """How long someone speaks."""
        return sum(end_s - start_s for start_s, end_s in self.speech_s)


def doubts(result: Result, checks: Checks) -> list[Doubt]:
    """Every reason not to trust a result; none where it can be."""
    text = result.text.strip()
    if not text:
        return [Doubt.EMPTY] if result.spoken_s > 0.5 else []
    found = _of_the_text(text, checks)
    # Half a second more than was found: voice activity misses soft ends.
    if len(text) > checks.most_characters_per_s * (result.spoken_s + 0.5):
        found.append(Doubt.TOO_FAST)
    if result.spoken_s >= 2 and _is_spaced(text) and len(text) < checks.least_characters_per_s * result.spoken_s:
        found.append(Doubt.TOO_SLOW)
    if result.avg_logprob < checks.least_avg_logprob:
        found.append(Doubt.LOW_PROBABILITY)
    return found + _of_the_times(result, checks)


def sparse(pieces: Sequence[tuple[str, float]]) -> list[int]:
    """Pieces of a recording that say far less than the others do in their time: the decoder may have stopped early.

    pieces: (text, seconds of speech), of one language. Their places, none where there are too few to compare.
    """
    rates = [len(text) / spoken_s for text, spoken_s in pieces if spoken_s >= SPARSE_LEAST_S]
    if len(rates) < SPARSE_LEAST_PIECES:
        return []
    least = SPARSE_RATE * statistics.median(rates)
    return [
        place
        for place, (text, spoken_s) in enumerate(pieces)
        if spoken_s >= SPARSE_LEAST_S and len(text) < least * spoken_s
    ]


def is_sparse(piece: tuple[str, float], others: Sequence[tuple[str, float]]) -> bool:
    """Whether a piece says far less than others of its recording; see `sparse`."""
    return len(others) in sparse([*others, piece])


def compression_ratio(text: str) -> float:
    """How well zlib compresses a text: Whisper's measure of repetition (arXiv:2212.04356, section 4.5)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _of_the_text(text: str, checks: Checks) -> list[Doubt]:
    is_short = len(text) < checks.short_text_characters
    found = [Doubt.REPETITION] if repeats_itself(text) else []
    if compression_ratio(text) > (checks.short_compression if is_short else checks.compression):
        found.append(Doubt.COMPRESSION)
    return found


def _of_the_times(result: Result, checks: Checks) -> list[Doubt]:
    if result.words_end_s is None:
        return []
    last_s = result.words_end_s
    unheard_s = sum(max(0.0, end - max(start, last_s)) for start, end in result.speech_s)
    found = [Doubt.PAST_END] if last_s > result.audio_s + checks.past_end_s else []
    return [*found, Doubt.EARLY_STOP] if unheard_s > checks.unheard_s else found


def repeats_itself(text: str) -> bool:
    """Whether a phrase is said again at once: one word four times, two words three times, three to ten words twice."""
    units = _units(text)
    for size in range(1, 11):
        times = {1: 4, 2: 3}.get(size, 2)
        run = 0
        for place in range(size, len(units)):
            run = run + 1 if units[place] == units[place - size] else 0
            if run >= size * (times - 1):
                return True
    return False


def _units(text: str) -> list[str]:
    """Words, or characters where a script has no spaces."""
    units: list[str] = []
    for word in text.lower().split():
        bare = word.strip(PUNCTUATION)
        if _is_spaced(bare):
            units += [bare] if bare else []
        else:
            units += [character for character in bare if character.isalnum()]
    return units


def _is_spaced(text: str) -> bool:
    return all(ord(character) <= LAST_SPACED_CODE_POINT for character in text)
