"""Where a recording is cut into pieces that fit the encoder, and what of each piece it is shown.

Pieces are cut at pauses, chosen together so that the sum of what the windows cost and of what the cuts risk is smallest
(dynamic programming over the pauses): a cut in a long pause is nearly free, one in a short pause may cost a word, and a
short piece loses context. Silence between pieces is not decoded at all, and a long pause inside a piece is shortened,
because the decoder takes it for the end and stops; `Piece.original_s` leads back to the clock of the recording.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.interface import VoiceActivity
from typeless_grpc.engine.window import FULL_WINDOW_S

# Least pause, in seconds, that counts in the risk of a cut: one frame of voice activity.
LEAST_PAUSE_S = 0.032

# Silence on a side of speech, in seconds, that is always shown, and how much more of it a window need not hold.
LEAST_SILENCE_S = 0.3
MOST_MARGIN_S = 0.9


@dataclass(frozen=True)
class CutPolicy:
    """What windows cost and cuts risk, both in seconds of the engine: docs/encoder-window.md.

    window_costs: (audio in s that it holds, cost) ascending. longest_s: of a piece, its long pauses shortened.
    longest_alone_s: the same where pieces are decoded one after the other, and gain nothing from being alike.
    short_risk: for each second that a piece is shorter than shortest_s. cut_risk: of a cut in a pause of 0.3 s; it
    falls with the length of the pause. padding_s: kept around speech, and counted in the costs. context_s: kept where
    the recording has as much and the piece has room for it, because words at the edges are heard better. pause_s:
    longer pauses in a piece are shortened to this. silence_s: a longer one always ends a piece.
    """

    window_costs: tuple[tuple[float, float], ...] = ((19.0, 0.25), (24.0, 0.40), (FULL_WINDOW_S, 0.59))
    longest_s: float = 24.0
    longest_alone_s: float = 28.5
    shortest_s: float = 8.0
    short_risk: float = 0.05
    cut_risk: float = 0.6
    padding_s: float = 0.3
    context_s: float = 1.2
    pause_s: float = 0.8
    silence_s: float = 30.0

    @property
    def kept_s(self) -> float:
        """The padding, as far as it leaves at least half of the longest piece to speech."""
        return min(self.padding_s, self.longest_s / 4)

    def asked(self, wishes: VoiceActivity) -> CutPolicy:
        """With the caller's choices in place of ours; the margin of the shortest window stays."""
        return replace(
            self,
            longest_s=min(self.longest_s, wishes.max_utterance_s or self.longest_s),
            longest_alone_s=min(self.longest_alone_s, wishes.max_utterance_s or self.longest_alone_s),
            padding_s=self.padding_s if wishes.speech_padding_s is None else wishes.speech_padding_s,
            context_s=self.context_s if wishes.speech_padding_s is None else wishes.speech_padding_s,
            silence_s=self.silence_s if wishes.end_silence_s is None else wishes.end_silence_s,
        )


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording and its speech, in samples of the recording. most_pause: longer ones are shortened."""

    start: int
    end: int
    speech: tuple[Span, ...]
    most_pause: int

    @functools.cached_property
    def kept(self) -> tuple[Span, ...]:
        """What is shown to the encoder: all but the middles of long pauses."""
        kept, start, half = [], self.start, self.most_pause // 2
        for before, after in itertools.pairwise(self.speech):
            if after.start - before.end > self.most_pause:
                kept.append(Span(start, before.end + half))
                start = after.start - half
        return (*kept, Span(start, self.end))

    @property
    def audio_s(self) -> float:
        """Length of what is shown, in seconds."""
        return sum(span.end - span.start for span in self.kept) / SAMPLE_RATE_HZ

    @property
    def needed_s(self) -> float:
        """Length of what a window must hold before its margin, which silence at the end is as good as."""
        silence_s = (self.end - self.speech[-1].end) / SAMPLE_RATE_HZ if self.speech else 0.0
        return self.audio_s - min(MOST_MARGIN_S, max(0.0, silence_s - LEAST_SILENCE_S))

    @property
    def spare_s(self) -> float:
        """Length of the silence at the start that can go where it makes for a smaller window."""
        silence_s = (self.speech[0].start - self.start) / SAMPLE_RATE_HZ if self.speech else 0.0
        return min(MOST_MARGIN_S, max(0.0, silence_s - LEAST_SILENCE_S))

    @property
    def least_s(self) -> float:
        """Length of what its smallest window must hold."""
        return self.needed_s - self.spare_s

    def shortened(self, needed_s: float) -> Piece:
        """This piece with less silence at its start, if that is needed, so that it needs no more than this."""
        less_s = min(self.spare_s, max(0.0, self.needed_s - needed_s))
        return replace(self, start=self.start + math.ceil(less_s * SAMPLE_RATE_HZ)) if less_s else self

    def shown(self, recording: Audio) -> Audio:
        """The samples that are shown."""
        parts = [recording[span.start : span.end] for span in self.kept]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shown_speech(self) -> tuple[Span, ...]:
        """Where speech is in what is shown, in samples of it."""
        found, offset = [], 0
        for kept in self.kept:
            inside = [span for span in self.speech if kept.start <= span.start and span.end <= kept.end]
            found += [Span(span.start - kept.start + offset, span.end - kept.start + offset) for span in inside]
            offset += kept.end - kept.start
        return tuple(found)

    def original_s(self, shown_s: float) -> float:
        """A time in what is shown, on the clock of the recording."""
        left = shown_s * SAMPLE_RATE_HZ
        for span in self.kept:
            if left <= span.end - span.start:
                return (span.start + max(0.0, left)) / SAMPLE_RATE_HZ
            left -= span.end - span.start
        return self.end / SAMPLE_RATE_HZ


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
        piece = _piece(parts, first, end, n_samples, policy, policy.kept_s)
        room_s = max(0.0, policy.longest_s - piece.audio_s) / 2
        more_s = min(room_s, max(0.0, policy.context_s - policy.kept_s))
        pieces.append(_piece(parts, first, end, n_samples, policy, policy.kept_s + more_s))
        end = first
    return pieces[::-1]


def _piece(parts: Sequence[Span], first: int, end: int, n_samples: int, policy: CutPolicy, padding_s: float) -> Piece:
    """The piece of parts[first:end], padded as far as the middle of the pauses around it."""
    padding = int(padding_s * SAMPLE_RATE_HZ)
    start = max(0, parts[first].start - padding)
    if first:
        start = max(start, (parts[first - 1].end + parts[first].start) // 2)
    stop = min(n_samples, parts[end - 1].end + padding)
    if end < len(parts):
        stop = min(stop, (parts[end - 1].end + parts[end].start) // 2)
    return Piece(start, stop, tuple(parts[first:end]), round(policy.pause_s * SAMPLE_RATE_HZ))


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
        audio_s = 2 * policy.kept_s
        for first in range(end - 1, -1, -1):
            audio_s += (parts[first].end - parts[first].start) / SAMPLE_RATE_HZ
            if end - first > 1:
                pause_s = _pause_s(parts[first], parts[first + 1])
                audio_s += min(policy.pause_s, pause_s)
                if audio_s > policy.longest_s or pause_s > policy.silence_s:
                    break
            cost = least[first] + _window_cost(audio_s, policy)
            if first:
                cost += policy.cut_risk * 0.3 / max(_pause_s(parts[first - 1], parts[first]), LEAST_PAUSE_S)
            if cost < least[end]:
                least[end], firsts[end] = cost, first
    return firsts


def _window_cost(audio_s: float, policy: CutPolicy) -> float:
    costs = (cost for holds_s, cost in policy.window_costs if audio_s <= holds_s)
    return next(costs, policy.window_costs[-1][1]) + policy.short_risk * max(0.0, policy.shortest_s - audio_s)


def _pause_s(before: Span, after: Span) -> float:
    return (after.start - before.end) / SAMPLE_RATE_HZ
