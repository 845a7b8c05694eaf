"""The contract's chunking strategies: which pieces of a recording are decoded, and how they depend on one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.interface import Chunking
from typeless_grpc.engine.model import FULL_WINDOW_S
from typeless_grpc.engine.planning.cuts import CutPolicy, Piece, plan

# Of FIXED: windows that leave the encoder some room, and an overlap with several words in it.
FIXED_WINDOW_S = 24.0
FIXED_OVERLAP_S = 4.0
# Of HYBRID, where speech is cut without a pause: enough for a few words that both pieces hear whole, and what the
# longest piece leaves of the encoder's 30 s.
HARD_CUT_OVERLAP_S = 1.5


@dataclass(frozen=True)
class Plan:
    """What to decode. chunking: the strategy, never AUTO. speech: all there is, in order.

    pieces: in order; where they overlap, what both heard is to be merged by its words. unlikely: those spans of the
    speech whose text is kept only if the model is confident of it.
    """

    chunking: Chunking
    pieces: tuple[Piece, ...]
    speech: tuple[Span, ...]
    unlikely: tuple[Span, ...] = ()

    @property
    def is_conditioned(self) -> bool:
        """Whether each piece is decoded after the one before it, and with its text."""
        return self.chunking is Chunking.WHOLE and len(self.pieces) > 1

    def overlaps(self, index: int) -> bool:
        """Whether a piece shares audio with a neighbour, so that its words are needed."""
        before, after = self.pieces[max(0, index - 1) : index], self.pieces[index + 1 : index + 2]
        piece = self.pieces[index]
        return any(one.end > piece.start for one in before) or any(piece.end > one.start for one in after)


def planned(chunking: Chunking, speech: Sequence[Span], n_samples: int, policy: CutPolicy) -> Plan:
    """How a recording of n_samples is cut by a strategy. speech: in order, without overlap, without padding."""
    speech = tuple(speech)
    if chunking is Chunking.AUTO:
        chunking = Chunking.WHOLE if n_samples <= FULL_WINDOW_S * SAMPLE_RATE_HZ else Chunking.HYBRID
    if chunking is Chunking.FIXED:
        return Plan(chunking, tuple(_windows(speech, n_samples, policy)), speech)
    if chunking is Chunking.WHOLE:
        policy = replace(policy, longest_s=policy.longest_alone_s)
    pieces = plan(speech, n_samples, policy)
    if chunking is Chunking.HYBRID:
        pieces = _overlapping(pieces)
    return Plan(chunking, tuple(pieces), speech)


def _windows(speech: Sequence[Span], n_samples: int, policy: CutPolicy) -> list[Piece]:
    """Windows of one length with overlap, from the start of the recording; those without speech are left out."""
    length_s = min(FIXED_WINDOW_S, policy.longest_s)
    overlap_s = min(FIXED_OVERLAP_S, length_s / 4)
    length, step = round(length_s * SAMPLE_RATE_HZ), round((length_s - overlap_s) * SAMPLE_RATE_HZ)
    last_start = max(0, n_samples - (length - step))  # what begins later lies whole in the window before
    windows = []
    for start in range(0, max(1, last_start), step):
        end = min(n_samples, start + length)
        inside = tuple(_within(speech, start, end))
        if inside:
            windows.append(Piece(start, end, inside, round(policy.pause_s * SAMPLE_RATE_HZ)))
    return windows


def _within(speech: Sequence[Span], start: int, end: int) -> list[Span]:
    clipped = (Span(max(start, span.start), min(end, span.end)) for span in speech)
    return [span for span in clipped if span.start < span.end]


def _overlapping(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, where one that was cut off within speech begins again a little before the cut."""
    grown = list(pieces[:1])
    for before, after in itertools.pairwise(pieces):
        if before.speech[-1].end < after.speech[0].start:
            grown.append(after)
            continue
        # Never so far that a piece meets one that is not its neighbour.
        reach = min(round(HARD_CUT_OVERLAP_S * SAMPLE_RATE_HZ), (before.end - before.start) // 2)
        start = after.start - reach
        grown.append(replace(after, start=start, speech=(replace(after.speech[0], start=start), *after.speech[1:])))
    return grown
