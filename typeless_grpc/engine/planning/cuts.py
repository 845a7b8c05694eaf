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

# Least pause, in seconds, that counts in the risk of a cut: one frame of voice activity.
LEAST_PAUSE_S = 0.032


@dataclass(frozen=True)
class CutPolicy:
    """What pieces cost and cuts risk, both in seconds of the engine: docs/measurements/long-recordings.md.

    cost_at_once_s: of a piece. cost_s_per_s2: of a piece, for the square of its length, because the cost of encoding
    grows faster than its input; what grows like it is the same for every plan. longest_s: of a piece, its long pauses
    shortened.
    longest_alone_s: the same where pieces are decoded one after the other, and gain nothing from being alike.
    short_risk: for each second that a piece is shorter than shortest_s. cut_risk: of a cut in a pause of 0.3 s; it
    falls with the length of the pause. padding_s: kept around speech, and counted in the costs. context_s: kept where
    the recording has as much and the piece has room for it, because words at the edges are heard better. pause_s:
    longer pauses in a piece are shortened to this. silence_s: a longer one always ends a piece.
    """

    cost_at_once_s: float = 0.04
    cost_s_per_s2: float = 0.00023
    longest_s: float = 24.0
    longest_alone_s: float = 28.5
    shortest_s: float = 8.0
    short_risk: float = 0.05
    cut_risk: float = 0.6
    padding_s: float = 0.3
    context_s: float = 0.6
    pause_s: float = 0.8
    silence_s: float = 30.0

    @property
    def kept_s(self) -> float:
        """The padding, as far as it leaves at least half of the longest piece to speech, in whole samples."""
        return int(min(self.padding_s, self.longest_s / 4) * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ

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

    def split(self, shown_s: float) -> tuple[Piece, Piece]:
        """The parts of this piece before and after a time in what is shown."""
        at = round(self.original_s(shown_s) * SAMPLE_RATE_HZ)
        before = tuple(Span(span.start, min(span.end, at)) for span in self.speech if span.start < at)
        after = tuple(Span(max(span.start, at), span.end) for span in self.speech if span.end > at)
        return replace(self, end=at, speech=before), replace(self, start=at, speech=after)

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
            cost = least[first] + _cost_s(audio_s, policy)
            if first:
                cost += policy.cut_risk * 0.3 / max(_pause_s(parts[first - 1], parts[first]), LEAST_PAUSE_S)
            if cost < least[end]:
                least[end], firsts[end] = cost, first
    return firsts


def _cost_s(audio_s: float, policy: CutPolicy) -> float:
    cost_s = policy.cost_at_once_s + policy.cost_s_per_s2 * audio_s**2
    return cost_s + policy.short_risk * max(0.0, policy.shortest_s - audio_s)


def _pause_s(before: Span, after: Span) -> float:
    return (after.start - before.end) / SAMPLE_RATE_HZ
