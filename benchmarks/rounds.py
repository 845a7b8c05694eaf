"""Compares two contestants that alternate on the same work in one run; only their ratio is meaningful."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.contestants import Contestant, Output
from benchmarks.recordings import Recording, wer


@dataclass(frozen=True)
class Outcome:
    """The rounds of one comparison. ratios: the peer's time divided by ours; above 1, ours is faster."""

    ours_s: tuple[float, ...]
    peer_s: tuple[float, ...]
    ours_wer: float
    peer_wer: float

    @property
    def ratios(self) -> list[float]:
        """One for each round."""
        return [peer / ours for peer, ours in zip(self.peer_s, self.ours_s, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    def row(self, title: str) -> list[str]:
        """For the table."""
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"
        return [
            title,
            f"{statistics.median(self.peer_s):.1f}",
            f"{statistics.median(self.ours_s):.1f}",
            f"**{self.ratio:.2f}**",
            spread,
            f"{100 * self.peer_wer:.1f}",
            f"{100 * self.ours_wer:.1f}",
        ]


COLUMNS = ["what", "peer s", "typeless s", "times as fast", "rounds", "peer WER %", "typeless WER %"]


def compare(
    ours: Contestant, peer: Contestant, recordings: Sequence[Recording], *, n_rounds: int, n_callers: int = 1
) -> Outcome:
    """Let both transcribe all recordings in every round, alternating who is first, after a round to warm up."""
    warm = list(recordings)[:2]
    for contestant in (ours, peer):
        _all(contestant, warm, n_callers)
    times: dict[str, list[float]] = {ours.name: [], peer.name: []}
    texts: dict[str, list[Output]] = {}
    for index in range(n_rounds):
        pair = (ours, peer) if index % 2 else (peer, ours)
        for contestant in pair:
            took_s, texts[contestant.name] = timed(lambda one=contestant: _all(one, recordings, n_callers))  # type: ignore[misc]
            times[contestant.name].append(took_s)
    return Outcome(
        tuple(times[ours.name]),
        tuple(times[peer.name]),
        wer(zip(recordings, (output.text for output in texts[ours.name]), strict=True)),
        wer(zip(recordings, (output.text for output in texts[peer.name]), strict=True)),
    )


def timed(work: Callable[[], list[Output]]) -> tuple[float, list[Output]]:
    """Seconds and result."""
    started_s = time.perf_counter()
    result = work()
    return time.perf_counter() - started_s, result


def _all(contestant: Contestant, recordings: Sequence[Recording], n_callers: int) -> list[Output]:
    if n_callers == 1:
        return [contestant.transcribe(recording) for recording in recordings]
    with ThreadPoolExecutor(n_callers) as callers:
        return list(callers.map(contestant.transcribe, recordings))
