"""Distinguishes a decoder's loop from repeated speech, and removes the loop.

A looping decoder writes a phrase again and again until it is cut off. The text cannot show the difference, because
people say things twice, but time can: a phrase that is spoken again takes as long again, and the alignment squeezes
what a loop adds into no time at all. So repeated words are kept as far as they have time of their own, and the rest is
removed. An alignment takes a third as long as a decode, so it is made only where the text gives reason to. The
measurements are in docs/measurements/loops.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.engine.decoding.units import units_of
from typeless_grpc.engine.model import Hypothesis, TimedWord

# A spoken word takes longer than this. The alignment works in steps of 0.02 s. The median of repeated words that were
# spoken was 0.1 s or more, and of those in loops none (docs/measurements/loops.md).
MIN_WORD_S = 0.05
# How often a phrase must occur in a row to count as repetition, by its length in words; longer phrases twice.
MIN_TIMES = {1: 4, 2: 3}


def may_loop(hypothesis: Hypothesis) -> bool:
    """Whether a text should be aligned, because it may be a loop."""
    return hypothesis.is_cut_off or repeats_itself(hypothesis.text)


def repeats_itself(text: str) -> bool:
    """Whether a phrase occurs several times in a row: one word four times, two words three times, longer ones twice."""
    units = units_of(text)
    for size in range(1, len(units) // 2 + 1):
        times = MIN_TIMES.get(size, 2)
        if any(run.n_repeated >= size * (times - 1) for run in _runs(units, size)):
            return True
    return False


@dataclass(frozen=True)
class WithoutLoops:
    """The words that were spoken, and the repetitions that were removed."""

    words: list[TimedWord]
    looped: list[TimedWord]


def remove_loops(words: Sequence[TimedWord]) -> WithoutLoops:
    """Remove repetitions that have no time of their own, from the longest phrase to the shortest."""
    kept, looped = list(words), list[TimedWord]()
    units = ["".join(units_of(word.text)) for word in kept]
    size = len(kept) // 2
    while size:
        runs = (run for run in _runs(units, size) if not _is_periodic(units[run.start : run.start + size]))
        loop = next((run for run in runs if run.n_repeated >= size and _is_loop(kept, run)), None)
        if loop is None:
            size -= 1
            continue
        repeated = kept[loop.start + size : loop.end]
        # Keep as many whole repetitions as have time, whichever of them the alignment gave it to.
        timed = [word for word in repeated if _has_time(word)]
        n_kept = len(timed) // size * size
        again = [replace(word, text=old.text) for word, old in zip(timed, repeated[:n_kept], strict=False)]
        kept[loop.start + size : loop.end] = again
        del units[loop.start + size + n_kept : loop.end]  # the kept words are those of the first repetitions
        looped += repeated[n_kept:]
        size = min(size, len(kept) // 2)
    return WithoutLoops(kept, looped)


@dataclass(frozen=True)
class _Run:
    """Units that equal those `size` positions before them. start: of the phrase; end: of its last repetition."""

    start: int
    end: int
    size: int

    @property
    def n_repeated(self) -> int:
        return self.end - self.start - self.size


def _runs(units: Sequence[str], size: int) -> list[_Run]:
    runs, position = [], size
    while position < len(units):
        end = position
        while end < len(units) and units[end] == units[end - size]:
            end += 1
        if end > position:
            runs.append(_Run(position - size, end, size))
        position = max(end, position + 1)
    return runs


def _is_periodic(phrase: Sequence[str]) -> bool:
    """Whether a phrase consists of a shorter one, repeated."""
    size = len(phrase)
    return any(size % part == 0 and phrase[part:] == phrase[:-part] for part in range(1, size // 2 + 1))


def _is_loop(words: Sequence[TimedWord], run: _Run) -> bool:
    """Whether at least half of the repeated words have no time."""
    repeated = words[run.start + run.size : run.end]
    return 2 * sum(not _has_time(word) for word in repeated) >= len(repeated)


def _has_time(word: TimedWord) -> bool:
    return word.end_s - word.start_s >= MIN_WORD_S
