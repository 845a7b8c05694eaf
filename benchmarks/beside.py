"""Our server against faster-whisper on the same recordings, one at a time and alternately: word errors and seconds.

It reports sums over all recordings and the worst recording, not medians, because users notice a few bad recordings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.contestants import Contestant
from benchmarks.recordings import Recording, word_errors

# Languages with fewer recordings are counted together, because three recordings tell nothing about a language.
LEAST_RECORDINGS = 10
N_RESAMPLES = 4000
COLUMNS = (
    "recordings, seconds",
    "words",
    "wrong: typeless",
    "wrong: {peer}",
    "points more (95 %)",
    "better, worse",
    "seconds: typeless",
    "seconds: {peer}",
    "times as fast",
    "slowest recording",
)


@dataclass(frozen=True)
class Comparison:
    """One recording through both. n_words: of the reference. errors, seconds: ours and the peer's."""

    recording: Recording
    n_words: int
    errors: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def slowness(self) -> float:
        """Our time divided by the peer's."""
        return self.seconds[0] / self.seconds[1]


def compare(ours: Contestant, peer: Contestant, recordings: Sequence[Recording]) -> list[Comparison]:
    """Let both transcribe each recording, alternating who is first, after two recordings to warm up."""
    for recording in recordings[:2]:
        ours.transcribe(recording)
        peer.transcribe(recording)
    outcomes = []
    for index, recording in enumerate(recordings):
        print(f"\r{index + 1} of {len(recordings)}", end="", file=sys.stderr, flush=True)
        errors: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for contestant in (ours, peer) if index % 2 else (peer, ours):
            began_s = time.perf_counter()
            text = contestant.transcribe(recording).text
            seconds[contestant.name] = time.perf_counter() - began_s
            errors[contestant.name], n_words = word_errors(recording, text)
        pairs = [(counts[ours.name], counts[peer.name]) for counts in (errors, seconds)]
        outcomes.append(Comparison(recording, n_words, pairs[0], pairs[1]))  # type: ignore[arg-type]
    print(file=sys.stderr)
    return outcomes


def table(title: str, peer: str, outcomes: Sequence[Comparison]) -> Iterator[str]:
    """A row for each language with ten recordings or more, for the other languages, each long recording, and all."""
    yield f"\n### {title}\n"
    yield "| " + " | ".join(column.format(peer=peer) for column in COLUMNS) + " |"
    yield "| --- " * len(COLUMNS) + "|"
    for name, group in _groups(outcomes).items():
        yield _row(name, group)


def _groups(outcomes: Sequence[Comparison]) -> Mapping[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for one in outcomes:
        is_long = one.recording.kind == "long"
        groups.setdefault(one.recording.path.stem if is_long else one.recording.language, []).append(one)
    large = {
        name: group
        for name, group in groups.items()
        if len(group) >= LEAST_RECORDINGS or group[0].recording.kind == "long"
    }
    others = [one for name, group in groups.items() if name not in large for one in group]
    named = {"other languages": others} if others else {}
    return large | named | ({"all": list(outcomes)} if len(groups) > 1 else {})


def _row(name: str, group: Sequence[Comparison]) -> str:
    n_words = sum(one.n_words for one in group)
    wrong = [sum(one.errors[place] for one in group) for place in (0, 1)]
    seconds = [sum(one.seconds[place] for one in group) for place in (0, 1)]
    better = sum(one.errors[0] < one.errors[1] for one in group)
    worse = sum(one.errors[0] > one.errors[1] for one in group)
    slowest = max(group, key=lambda one: one.slowness)
    low, high = interval(group)
    cells = [
        f"{name}: {len(group)}, {sum(one.recording.audio_s for one in group):.0f}",
        str(n_words),
        *(f"{count} ({count / n_words:.1%})" for count in wrong),
        f"{100 * (wrong[0] - wrong[1]) / n_words:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{better}, {worse}",
        *(f"{one:.1f}" for one in seconds),
        f"**{seconds[1] / seconds[0]:.2f}**",
        f"{slowest.slowness:.2f} of its time",
    ]
    return "| " + " | ".join(cells) + " |"


def interval(group: Sequence[Comparison]) -> tuple[float, float]:
    """The 95 % interval of the difference in word errors, in points, by a paired bootstrap over recordings."""
    n_words = np.array([one.n_words for one in group])
    difference = np.array([one.errors[0] - one.errors[1] for one in group])
    drawn = np.random.default_rng(0).integers(0, len(group), (N_RESAMPLES, len(group)))
    points = 100 * difference[drawn].sum(axis=1) / np.maximum(1, n_words[drawn].sum(axis=1))
    low, high = np.quantile(points, (0.025, 0.975))
    return float(low), float(high)
