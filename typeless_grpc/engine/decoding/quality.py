"""Quality checks: whether a hypothesis can be the text of its audio.

Whisper's decoder fails in three ways that matter. It loops (`loops.py`). It stops early, because it takes a pause for
the end. Or it does not understand the speech, and its tokens have a low probability. A slow speaker's text is short,
too, so an early stop shows only in time: much speech follows the last word of the text. A short text is therefore
aligned, and what it leaves out is decoded on its own. The measurements are in docs/measurements/early-stops.md.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from enum import Enum

from typeless_grpc.engine.decoding.units import is_dense, units_of
from typeless_grpc.engine.model import Hypothesis, TimedWord

# More characters a second than anybody can speak; auctioneers reach 25. The detector misses soft ends, so half
# a second more than it detected counts as speech.
MAX_CHARACTERS_PER_S = 30.0
MISSED_SPEECH_S = 0.5
# A text is expected for speech of this length.
MIN_SPEECH_S = 0.5
# A text with fewer characters a second, for this much speech or more, may have stopped early. A character of a dense
# script counts as three.
SLOW_CHARACTERS_PER_S = 12.0
CHARACTERS_PER_DENSE_ONE = 3
MIN_COMPARED_S = 4.0
# Even slow speech with pauses has as many characters a second.
MIN_CHARACTERS_PER_S = 4.0
# A text has stopped early if more speech than MAX_UNCOVERED_S follows its last word, and that word ends at
# MIN_PROGRESS_S or later. The rest is decoded from SILENCE_BEFORE_S before its speech.
MAX_UNCOVERED_S = 2.0
MIN_PROGRESS_S = 1.0
SILENCE_BEFORE_S = 0.3
# A text that has MIN_ECHO_WORDS words in a row in common with the prompt may come from there. The text without the
# prompt decides: if the words were spoken, the two texts are similar.
MIN_ECHO_WORDS = 8
MIN_SIMILARITY = 0.6


class Issue(Enum):
    """Why a text may be wrong."""

    EMPTY = "empty"  # no text where there is speech
    CUT_OFF = "cut_off"  # the search reached its limit of tokens
    TOO_FAST = "too_fast"  # more text than can be spoken in the time
    LOW_CONFIDENCE = "low_confidence"


# A text with one of these is no transcript of the audio.
UNUSABLE = frozenset({Issue.EMPTY, Issue.CUT_OFF, Issue.TOO_FAST})


def issues_of(hypothesis: Hypothesis, speech_s: float, *, low_logprob: float) -> frozenset[Issue]:
    """Return all quality issues of a hypothesis. speech_s: how much speech its audio holds.

    low_logprob: a lower mean log probability is low confidence.
    """
    if not hypothesis.text:
        return frozenset({Issue.EMPTY} if speech_s > MIN_SPEECH_S else ())
    issues = set()
    if hypothesis.is_cut_off:
        issues.add(Issue.CUT_OFF)
    if is_too_fast(hypothesis.text, speech_s):
        issues.add(Issue.TOO_FAST)
    if hypothesis.avg_logprob < low_logprob:
        issues.add(Issue.LOW_CONFIDENCE)
    return frozenset(issues)


def is_too_fast(text: str, speech_s: float) -> bool:
    """Whether a text is too long to be spoken in this time."""
    return len(text) > MAX_CHARACTERS_PER_S * (speech_s + MISSED_SPEECH_S)


def is_too_slow(text: str, speech_s: float) -> bool:
    """Whether a text is so short for this time that it leaves out most of the speech."""
    return _n_characters(text) + MIN_CHARACTERS_PER_S * MISSED_SPEECH_S < MIN_CHARACTERS_PER_S * speech_s


def may_stop_early(text: str, speech_s: float) -> bool:
    """Whether a text is so short for its speech that it should be aligned, to find what it leaves out."""
    return speech_s >= MIN_COMPARED_S and _n_characters(text) < SLOW_CHARACTERS_PER_S * speech_s


def uncovered_from(words: Sequence[TimedWord], speech_s: Sequence[tuple[float, float]]) -> float | None:
    """Return where the speech begins that a text leaves out, in seconds; None if the text covers all.

    words: those of the text, with times. speech_s: start and end of each span of speech, in order.
    """
    if not words or words[-1].end_s < MIN_PROGRESS_S:
        return None
    last_s = words[-1].end_s
    rest = [(max(start_s, last_s), end_s) for start_s, end_s in speech_s if end_s > last_s + MIN_SPEECH_S]
    is_left_out = sum(end_s - start_s for start_s, end_s in rest) > MAX_UNCOVERED_S
    return max(last_s, rest[0][0] - SILENCE_BEFORE_S) if is_left_out else None


def compression_ratio(text: str) -> float:
    """Return how well zlib compresses a text: Whisper's measure of repetition (arXiv:2212.04356, section 4.5)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def may_echo(text: str, hints: str) -> bool:
    """Whether a text has so many words of the prompt that it may repeat the prompt instead of the audio."""
    of_hints = _phrases(hints)
    return any(phrase in of_hints for phrase in _phrases(text))


def are_similar(text: str, other: str) -> bool:
    """Whether two texts can be of the same speech."""
    return difflib.SequenceMatcher(None, units_of(text), units_of(other), autojunk=False).ratio() >= MIN_SIMILARITY


def _phrases(text: str) -> set[tuple[str, ...]]:
    units = units_of(text)
    return {tuple(units[i : i + MIN_ECHO_WORDS]) for i in range(len(units) - MIN_ECHO_WORDS + 1)}


def _n_characters(text: str) -> int:
    return sum(CHARACTERS_PER_DENSE_ONE if is_dense(one) else 1 for one in text)
