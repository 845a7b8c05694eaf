"""Which language a stretch of speech is in, where the caller did not say.

Whisper tells how likely each language is from what its encoder is shown. On a few seconds that is reliable for
languages as far apart as those that people switch between, and doubtful for a word or two; so a piece is taken to be in
the recording's language unless it clearly is in another. Where a piece seems to be in two, its utterances are looked at
one by one, and it is cut where they change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.planning.cuts import Piece

# A piece is in another language than the recording where there is this much speech in it, and this certainly.
SWITCH_SPEECH_S = 1.5
SWITCH_PROBABILITY = 0.8
# A second language this likely is worth a closer look. Measured with base: a few seconds of another language at the
# end of ten are found with 0.02 to 0.5, and speech in one language leaves others 0.01.
MIXED_PROBABILITY = 0.02
# Utterances to look at: apart by a pause, and as long as it takes.
PAUSE_S = 0.25
LOOKED_AT_S = 4.5

# Languages so close that Whisper is often in two minds about speech that is in one: no sign of a second one.
_CLOSE = (
    {"es", "gl", "ca", "pt", "la", "oc"},
    {"no", "nn", "da", "sv"},
    {"id", "ms", "jw", "su"},
    {"hi", "ur", "ne", "mr"},
    {"zh", "yue"},
    {"hr", "sr", "bs", "sl", "mk"},
    {"cs", "sk", "pl"},
    {"ru", "uk", "be", "bg"},
    {"nl", "af", "de", "lb", "yi"},
    {"fr", "br", "oc"},
    {"it", "la"},
)

Found = Sequence[tuple[str, float]]  # languages and their probabilities, the likeliest first


def among(found: Found, allowed: Sequence[str]) -> Found:
    """What was found, if only the allowed ones are possible; all of it where allowed is empty."""
    if not allowed:
        return found
    possible = [(language, probability) for language, probability in found if language in allowed]
    total = sum(probability for _, probability in possible)
    if total <= 0:
        return [(language, 1 / len(possible)) for language, _ in possible]
    return [(language, probability / total) for language, probability in possible]


def chosen(found: Found, expected: str, speech_s: float) -> tuple[str, float]:
    """The language of a piece and its probability. expected: the recording's, "" where it is not known yet."""
    language, probability = found[0]
    is_clear = speech_s >= SWITCH_SPEECH_S and probability >= SWITCH_PROBABILITY
    if not expected or language == expected or is_clear:
        return language, probability
    return expected, dict(found).get(expected, 0.0)


def seem_mixed(found: Found) -> bool:
    """Whether a second language may be spoken besides the first."""
    (first, _), rest = found[0], found[1:]
    second = next((one for one in rest if not any({first, one[0]} <= close for close in _CLOSE)), None)
    return second is not None and second[1] >= MIXED_PROBABILITY


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
            if pause_s < PAUSE_S or Utterance(tuple(parts[-1])).speech_s < SWITCH_SPEECH_S:
                parts[-1].append(span)
                continue
        parts.append([span])
    if len(parts) > 1 and Utterance(tuple(parts[-1])).speech_s < SWITCH_SPEECH_S:
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
