"""Cuts a piece where its language changes.

Where a piece seems to be in two languages, the language of each of its utterances is detected, and the piece is cut
where it changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.planning.cuts import Piece
from typeless_grpc.speech.languages import CLEAR_SPEECH_S

# Utterances to look at: apart by a pause, and as long as it takes.
PAUSE_S = 0.25
LOOKED_AT_S = 4.5


@dataclass(frozen=True)
class Utterance:
    """Some of a piece's speech, followed by a pause or its end."""

    spans: tuple[Span, ...]

    @property
    def speech_s(self) -> float:
        """How much speech there is."""
        return sum(span.end - span.start for span in self.spans) / SAMPLE_RATE_HZ

    def shown(self) -> tuple[int, int]:
        """The samples to look at for its language."""
        start = self.spans[0].start
        return start, min(self.spans[-1].end, start + round(LOOKED_AT_S * SAMPLE_RATE_HZ))


def utterances(piece: Piece) -> list[Utterance]:
    """A piece's speech, cut at its pauses into parts that are long enough to tell their language."""
    parts: list[list[Span]] = []
    for span in piece.speech:
        if parts:
            pause_s = (span.start - parts[-1][-1].end) / SAMPLE_RATE_HZ
            if pause_s < PAUSE_S or Utterance(tuple(parts[-1])).speech_s < CLEAR_SPEECH_S:
                parts[-1].append(span)
                continue
        parts.append([span])
    if len(parts) > 1 and Utterance(tuple(parts[-1])).speech_s < CLEAR_SPEECH_S:
        short = parts.pop()
        parts[-1] += short
    return [Utterance(tuple(part)) for part in parts]


def cut_where_it_changes(piece: Piece, found: Sequence[tuple[Utterance, str, float]]) -> list[tuple[Piece, str, float]]:
    """The piece as one for each run of utterances in one language, with it and its least probability."""
    runs: list[tuple[list[Span], str, float]] = []
    for utterance, language, probability in found:
        if runs and runs[-1][1] == language:
            spans, _, least = runs[-1]
            runs[-1] = ([*spans, *utterance.spans], language, min(least, probability))
        else:
            runs.append(([*utterance.spans], language, probability))
    edges = [
        piece.start,
        *((a[0][-1].end + b[0][0].start) // 2 for a, b in itertools.pairwise(runs)),
        piece.end,
    ]
    return [
        (replace(piece, start=start, end=end, speech=tuple(spans)), language, probability)
        for (spans, language, probability), (start, end) in zip(runs, itertools.pairwise(edges), strict=True)
    ]
