"""Where a long recording is cut into pieces that fit the encoder.

Pieces are cut at pauses, chosen together so that the sum of what the windows cost and of what the cuts risk is smallest
(dynamic programming over the pauses): a cut in a long pause is nearly free, one in a short pause may cost a word, and a
short piece loses context. Silence between pieces is not decoded at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.window import FULL_WINDOW_S

# Least pause, in seconds, that counts in the risk of a cut: one frame of voice activity.
LEAST_PAUSE_S = 0.032


@dataclass(frozen=True)
class CutPolicy:
    """What windows cost and cuts risk, both in seconds of the engine.

    window_costs: (size in s, cost) ascending. margin_s: room a window leaves after its piece. longest_s: of a piece.
    short_risk: for each second that a piece is shorter than shortest_s. cut_risk: of a cut in a pause of 0.3 s; it
    falls with the length of the pause. padding_s: kept around speech; at most a quarter of longest_s, so that there is
    room for speech. silence_s: a longer one always ends a piece.
    """

    window_costs: tuple[tuple[float, float], ...] = ((15.0, 0.17), (20.0, 0.25), (25.0, 0.40), (FULL_WINDOW_S, 0.59))
    margin_s: float = 1.0
    longest_s: float = 24.0
    shortest_s: float = 8.0
    short_risk: float = 0.05
    cut_risk: float = 0.06
    padding_s: float = 0.3
    silence_s: float = 3.0

    @property
    def kept_s(self) -> float:
        """The padding that leaves room for speech."""
        return min(self.padding_s, self.longest_s / 4)


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording and the speech in it, all in samples of the recording."""

    start: int
    end: int
    speech: tuple[Span, ...]

    @property
    def audio_s(self) -> float:
        """Its length in seconds."""
        return (self.end - self.start) / SAMPLE_RATE_HZ


def plan(speech: Sequence[Span], n_samples: int, policy: CutPolicy) -> list[Piece]:
    """Cut a recording of n_samples into pieces, in order, without overlap, holding all of its speech.

    speech: in order and without overlap, without padding; a span longer than a piece is cut evenly.
    """
    parts = [part for span in speech for part in _fitting(span, policy)]
    firsts = _best_firsts(parts, policy)
    pieces: list[Piece] = []
    end = len(parts)
    while end:
        first = firsts[end]
        start_sample = _border(parts, first, n_samples, policy) if first else _lead_in(parts[0], policy)
        end_sample = _border(parts, end, n_samples, policy, before=True)
        pieces.append(Piece(start_sample, end_sample, tuple(parts[first:end])))
        end = first
    return pieces[::-1]


def _fitting(span: Span, policy: CutPolicy) -> list[Span]:
    most = int((policy.longest_s - 2 * policy.kept_s) * SAMPLE_RATE_HZ)
    n_parts = max(1, math.ceil((span.end - span.start) / most))
    edges = [span.start + (span.end - span.start) * index // n_parts for index in range(n_parts + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(edges)]


def _best_firsts(parts: Sequence[Span], policy: CutPolicy) -> list[int]:
    """For each number of parts, the first part of the last piece in the cheapest plan over them."""
    least = [0.0] + [math.inf] * len(parts)
    firsts = [0] * (len(parts) + 1)
    for end in range(1, len(parts) + 1):
        for first in range(end - 1, -1, -1):
            audio_s = (parts[end - 1].end - parts[first].start) / SAMPLE_RATE_HZ + 2 * policy.kept_s
            if end - first > 1 and (
                audio_s > policy.longest_s or _pause_s(parts[first], parts[first + 1]) > policy.silence_s
            ):
                break
            cost = least[first] + _window_cost(audio_s, policy)
            if first:
                cost += policy.cut_risk * 0.3 / max(_pause_s(parts[first - 1], parts[first]), LEAST_PAUSE_S)
            if cost < least[end]:
                least[end], firsts[end] = cost, first
    return firsts


def _window_cost(audio_s: float, policy: CutPolicy) -> float:
    costs = (cost for size_s, cost in policy.window_costs if audio_s + policy.margin_s <= size_s)
    return next(costs, policy.window_costs[-1][1]) + policy.short_risk * max(0.0, policy.shortest_s - audio_s)


def _pause_s(before: Span, after: Span) -> float:
    return (after.start - before.end) / SAMPLE_RATE_HZ


def _lead_in(first: Span, policy: CutPolicy) -> int:
    return max(0, first.start - int(policy.kept_s * SAMPLE_RATE_HZ))


def _border(parts: Sequence[Span], place: int, n_samples: int, policy: CutPolicy, *, before: bool = False) -> int:
    """Where the piece that ends before parts[place] ends, or the one that begins with it begins."""
    padding = int(policy.kept_s * SAMPLE_RATE_HZ)
    if place == len(parts):
        return min(n_samples, parts[-1].end + padding)
    middle = (parts[place - 1].end + parts[place].start) // 2
    return min(middle, parts[place - 1].end + padding) if before else max(middle, parts[place].start - padding)
