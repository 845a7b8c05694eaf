"""Quality checks: whether the text of a search can be used.

Whisper's decoder fails in three ways that matter. It loops: it writes a phrase again and again, until it is cut off.
It stops early: it takes a pause for the end. Or it does not understand the speech, and its tokens have a low
probability.

The words of a text cannot tell the first two from what people do: they say things twice, and speak slowly. Time can. A
phrase that is spoken again takes as long again, and what a loop adds is squeezed into no time at all by the alignment.
So repeated words are kept as far as they have time of their own, and the rest of a loop is removed. And a text has
stopped early where much speech follows its last word. Both are checked only where the text gives reason to, because an
alignment takes a third as long as a decode. The measurements are in docs/measurements/loops.md and early-stops.md.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.model import Hypothesis

# Above it lie scripts that are written without spaces between words (Unicode: CJK Radicals Supplement begins at 2E80).
LAST_SPACED_CODE_POINT = 0x2E7F
PUNCTUATION = ".,!?;:\"'()[]-–—…。，！？、"

# Text faster than this, in characters a second of speech, was not spoken: auctioneers reach 25. Half a second more
# than was found counts as speech, because voice activity misses soft ends.
MOST_CHARACTERS_PER_S = 30.0
MISSED_SPEECH_S = 0.5
# Speech this long has some text.
LEAST_SPEECH_S = 0.5
# Slow speech has about so many characters a second, a character of a script without spaces counting as three; a text
# with fewer may be the beginning only. Speech after the last word that is longer than this was left out.
SLOW_CHARACTERS_PER_S = 12.0
DENSE_CHARACTERS = 3
LEAST_COMPARED_S = 4.0
# Speech that is found has no fewer characters a second, even where it is slow and has pauses.
LEAST_CHARACTERS_PER_S = 4.0
MOST_UNCOVERED_S = 2.0
LEAST_PROGRESS_S = 1.0
SILENCE_BEFORE_S = 0.3
# So many words in a row that a prompt has too may be the prompt's and not the audio's. A text without the prompt tells:
# of one that was spoken it has most words as well, of one that was not next to none.
LEAST_ECHO_WORDS = 8
LEAST_ALIKE = 0.6
# A spoken word takes longer; the alignment works in steps of 0.02 s. Repeated words that were spoken took 0.1 s and
# more in the median, those that loops add none (docs/measurements/loops.md).
LEAST_WORD_S = 0.05
# faster_whisper.transcribe.WhisperModel.transcribe, default of `compression_ratio_threshold`.
COMPRESSION_RATIO_THRESHOLD = 2.4


class Issue(Enum):
    """Why a text may be wrong."""

    EMPTY = "empty"
    CUT_OFF = "cut_off"
    TOO_FAST = "too_fast"
    LOW_CONFIDENCE = "low_confidence"


# A text with one of these is no transcript of the audio.
UNUSABLE = frozenset({Issue.EMPTY, Issue.CUT_OFF, Issue.TOO_FAST})


def issues_of(hypothesis: Hypothesis, speech_s: float, *, low_logprob: float) -> frozenset[Issue]:
    """Everything that is wrong with a text. speech_s: how long someone speaks in its audio.

    low_logprob: a mean log probability under it is a low confidence.
    """
    if not hypothesis.text:
        return frozenset({Issue.EMPTY} if speech_s > LEAST_SPEECH_S else ())
    found = set()
    if hypothesis.is_cut_off:
        found.add(Issue.CUT_OFF)
    if is_too_fast(hypothesis.text, speech_s):
        found.add(Issue.TOO_FAST)
    if hypothesis.avg_logprob < low_logprob:
        found.add(Issue.LOW_CONFIDENCE)
    return frozenset(found)


def is_too_fast(text: str, speech_s: float) -> bool:
    """Whether nobody can say a text in so many seconds."""
    return len(text) > MOST_CHARACTERS_PER_S * (speech_s + MISSED_SPEECH_S)


def is_too_slow(text: str, speech_s: float) -> bool:
    """Whether nobody takes so long to say a text: it leaves out most of the speech."""
    return _n_characters(text) + LEAST_CHARACTERS_PER_S * MISSED_SPEECH_S < LEAST_CHARACTERS_PER_S * speech_s


def may_echo(text: str, hints: str) -> bool:
    """Whether a text has so much of a prompt that it may be that, and not what was spoken."""
    theirs = _in_a_row(hints)
    return any(words in theirs for words in _in_a_row(text))


def are_alike(text: str, other: str) -> bool:
    """Whether two texts can be of the same speech."""
    return difflib.SequenceMatcher(None, _units(text), _units(other), autojunk=False).ratio() >= LEAST_ALIKE


def _in_a_row(text: str) -> set[tuple[str, ...]]:
    units = _units(text)
    return {tuple(units[i : i + LEAST_ECHO_WORDS]) for i in range(len(units) - LEAST_ECHO_WORDS + 1)}


def may_stop_early(text: str, speech_s: float) -> bool:
    """Whether a text is so short for its speech that it is worth an alignment that tells what it leaves out."""
    return speech_s >= LEAST_COMPARED_S and _n_characters(text) < SLOW_CHARACTERS_PER_S * speech_s


def _n_characters(text: str) -> int:
    return sum(1 if ord(one) <= LAST_SPACED_CODE_POINT else DENSE_CHARACTERS for one in text)


def uncovered_from(words: Sequence[TimedWord], speech_s: Sequence[tuple[float, float]]) -> float | None:
    """Where speech begins that a text leaves out, in seconds, if it does: the decoder stopped at a pause before.

    words: of the text, with times. speech_s: from where to where someone speaks, in order.
    """
    if not words or words[-1].end_s < LEAST_PROGRESS_S:
        return None
    last_s = words[-1].end_s
    rest = [(max(start_s, last_s), end_s) for start_s, end_s in speech_s if end_s > last_s + LEAST_SPEECH_S]
    is_left_out = sum(end_s - start_s for start_s, end_s in rest) > MOST_UNCOVERED_S
    return max(last_s, rest[0][0] - SILENCE_BEFORE_S) if is_left_out else None


def compression_ratio(text: str) -> float:
    """How well zlib compresses a text: Whisper's measure of repetition (arXiv:2212.04356, section 4.5)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def may_loop(hypothesis: Hypothesis) -> bool:
    """Whether a text is worth an alignment that tells a loop from repetition."""
    return hypothesis.is_cut_off or repeats_itself(hypothesis.text)


def repeats_itself(text: str) -> bool:
    """Whether a phrase follows itself: one word four times, two words three times, longer ones twice."""
    units = _units(text)
    for size in range(1, len(units) // 2 + 1):
        times = {1: 4, 2: 3}.get(size, 2)
        if any(run.n_repeated >= size * (times - 1) for run in _runs(units, size)):
            return True
    return False


@dataclass(frozen=True)
class WithoutLoops:
    """Words that were spoken, and the repetitions of them that were not."""

    words: list[TimedWord]
    looped: list[TimedWord]


def without_loops(words: Sequence[TimedWord]) -> WithoutLoops:
    """Remove repetitions that have no time of their own, from the longest to the shortest phrase."""
    kept, looped = list(words), list[TimedWord]()
    units = ["".join(_units(word.text)) for word in kept]
    size = len(kept) // 2
    while size:
        runs = (run for run in _runs(units, size) if not _is_periodic(units[run.start : run.start + size]))
        loop = next((run for run in runs if run.n_repeated >= size and _is_loop(kept, run)), None)
        if loop is None:
            size -= 1
            continue
        repeated = kept[loop.start + size : loop.end]
        # As many repetitions as have time, whichever of them the alignment gave it to.
        timed = [word for word in repeated if _has_time(word)]
        n_kept = len(timed) // size * size
        again = [replace(word, text=old.text) for word, old in zip(timed, repeated[:n_kept], strict=False)]
        kept[loop.start + size : loop.end] = again
        del units[loop.start + size + n_kept : loop.end]  # what is kept are the first repetitions' words
        looped += repeated[n_kept:]
        size = min(size, len(kept) // 2)
    return WithoutLoops(kept, looped)


@dataclass(frozen=True)
class _Run:
    """Units that repeat those `size` places before them. start: of the phrase; end: of its last repetition."""

    start: int
    end: int
    size: int

    @property
    def n_repeated(self) -> int:
        return self.end - self.start - self.size


def _runs(units: Sequence[str], size: int) -> list[_Run]:
    runs, place = [], size
    while place < len(units):
        end = place
        while end < len(units) and units[end] == units[end - size]:
            end += 1
        if end > place:
            runs.append(_Run(place - size, end, size))
        place = max(end, place + 1)
    return runs


def _is_periodic(phrase: Sequence[str]) -> bool:
    """Whether a phrase is itself a shorter one several times."""
    size = len(phrase)
    return any(size % part == 0 and phrase[part:] == phrase[:-part] for part in range(1, size // 2 + 1))


def _is_loop(words: Sequence[TimedWord], run: _Run) -> bool:
    repeated = words[run.start + run.size : run.end]
    return 2 * sum(not _has_time(word) for word in repeated) >= len(repeated)


def _has_time(word: TimedWord) -> bool:
    return word.end_s - word.start_s >= LEAST_WORD_S


def _units(text: str) -> list[str]:
    """Words, or characters where a script has no spaces."""
    units: list[str] = []
    for word in text.lower().split():
        bare = word.strip(PUNCTUATION)
        if all(ord(character) <= LAST_SPACED_CODE_POINT for character in bare):
            units += [bare] if bare else []
        else:
            units += [character for character in bare if character.isalnum()]
    return units
