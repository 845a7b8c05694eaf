"""Where a recording is cut into chunks that fit the encoder.

Recordings are cut at pauses. The cuts are chosen together, by dynamic programming over the pauses, so that the cost of
all windows plus the risk of all cuts is least: a cut in a long pause is nearly free, one in a short pause may cost a
word, and a short chunk loses context. Silence between chunks is not decoded. `strategies.py` and the planner of FILE
streams call `cut`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.costs import COST_PER_S2, FIXED_COST
from typeless_grpc.engine.interface import VoiceActivityOptions
from typeless_grpc.engine.planning.chunk import Chunk

# Shortest pause, in seconds, for the risk of a cut: one frame of voice activity.
MIN_PAUSE_S = 0.032
# The pause, in seconds, in which a cut risks exactly `CutPolicy.cut_risk`.
CUT_RISK_PAUSE_S = 0.3


@dataclass(frozen=True)
class CutPolicy:
    """The cost of chunks and the risk of cuts, in seconds of the engine; see docs/measurements/long-recordings.md.

    fixed_cost, cost_per_s2: of a chunk, and of the square of its length; what grows with the length is the same for
    every plan. longest_s: of a chunk's window. longest_sequential_s: the same where chunks are decoded one after the
    other, and no batch gains from equal lengths. short_risk: for each second that a window is shorter than shortest_s.
    cut_risk: of a cut in a pause of 0.3 s; it falls with the length of the pause. padding_s: audio kept around speech,
    counted in the costs. context_s: audio kept where the recording has it and the window has room, because words at the
    edges are recognized better. pause_s: longer pauses inside a chunk are shortened to this. silence_s: a longer pause
    always ends a chunk.
    """

    fixed_cost: float = FIXED_COST
    cost_per_s2: float = COST_PER_S2
    longest_s: float = 24.0
    longest_sequential_s: float = 28.5
    shortest_s: float = 8.0
    short_risk: float = 0.05
    cut_risk: float = 0.6
    padding_s: float = 0.3
    context_s: float = 0.6
    pause_s: float = 0.8
    silence_s: float = 30.0

    @property
    def effective_padding_s(self) -> float:
        """The padding, limited so that speech has at least half of the longest window; a whole number of samples."""
        return int(min(self.padding_s, self.longest_s / 4) * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ

    @property
    def max_pause(self) -> int:
        """pause_s in samples."""
        return round(self.pause_s * SAMPLE_RATE_HZ)

    def with_overrides(self, options: VoiceActivityOptions) -> CutPolicy:
        """Replace these values by those that the caller set; windows never get longer than they are here."""
        padding_s = options.speech_padding_s
        return replace(
            self,
            longest_s=min(self.longest_s, options.max_utterance_s or self.longest_s),
            longest_sequential_s=min(self.longest_sequential_s, options.max_utterance_s or self.longest_sequential_s),
            padding_s=self.padding_s if padding_s is None else padding_s,
            context_s=self.context_s if padding_s is None else padding_s,
            silence_s=self.silence_s if options.end_silence_s is None else options.end_silence_s,
        )


def cut(speech: Sequence[Span], n_samples: int, policy: CutPolicy) -> list[Chunk]:
    """Cut a recording of n_samples into chunks, in order and without overlap, that hold all of its speech.

    speech: in order, without overlap and without padding; a span longer than a chunk is cut evenly.
    """
    parts = [part for span in speech for part in _divide(span, policy)]
    firsts = _best_firsts(parts, policy)
    chunks: list[Chunk] = []
    end = len(parts)
    while end:
        first = firsts[end]
        padding_s = policy.effective_padding_s
        chunk = _chunk(parts, first, end, n_samples, policy, padding_s)
        room_s = max(0.0, policy.longest_s - chunk.window_s) / 2
        extra_s = min(room_s, max(0.0, policy.context_s - padding_s))
        chunks.append(_chunk(parts, first, end, n_samples, policy, padding_s + extra_s))
        end = first
    return chunks[::-1]


def _chunk(parts: Sequence[Span], first: int, end: int, n_samples: int, policy: CutPolicy, padding_s: float) -> Chunk:
    """Return the chunk of parts[first:end], padded at most to the middle of the pauses around it."""
    padding = int(padding_s * SAMPLE_RATE_HZ)
    start = max(0, parts[first].start - padding)
    if first:
        start = max(start, (parts[first - 1].end + parts[first].start) // 2)
    stop = min(n_samples, parts[end - 1].end + padding)
    if end < len(parts):
        stop = min(stop, (parts[end - 1].end + parts[end].start) // 2)
    return Chunk(start, stop, tuple(parts[first:end]), policy.max_pause)


def _divide(span: Span, policy: CutPolicy) -> list[Span]:
    """Return the span in equal parts that each fit into a chunk."""
    most = int((policy.longest_s - 2 * policy.effective_padding_s) * SAMPLE_RATE_HZ)
    n_parts = max(1, math.ceil((span.end - span.start) / most))
    edges = [span.start + (span.end - span.start) * index // n_parts for index in range(n_parts + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(edges)]


def _best_firsts(parts: Sequence[Span], policy: CutPolicy) -> list[int]:
    """Return, for each number of parts, the first part of the last chunk in the cheapest plan over them."""
    least = [0.0] + [math.inf] * len(parts)
    firsts = [0] * (len(parts) + 1)
    for end in range(1, len(parts) + 1):
        window_s = 2 * policy.effective_padding_s
        for first in range(end - 1, -1, -1):
            window_s += (parts[first].end - parts[first].start) / SAMPLE_RATE_HZ
            if end - first > 1:
                pause_s = _pause_s(parts[first], parts[first + 1])
                window_s += min(policy.pause_s, pause_s)
                if window_s > policy.longest_s or pause_s > policy.silence_s:
                    break
            cost = least[first] + _chunk_cost(window_s, policy)
            if first:
                pause_s = max(_pause_s(parts[first - 1], parts[first]), MIN_PAUSE_S)
                cost += policy.cut_risk * CUT_RISK_PAUSE_S / pause_s
            if cost < least[end]:
                least[end], firsts[end] = cost, first
    return firsts


def _chunk_cost(window_s: float, policy: CutPolicy) -> float:
    cost = policy.fixed_cost + policy.cost_per_s2 * window_s**2
    return cost + policy.short_risk * max(0.0, policy.shortest_s - window_s)


def _pause_s(before: Span, after: Span) -> float:
    return (after.start - before.end) / SAMPLE_RATE_HZ
