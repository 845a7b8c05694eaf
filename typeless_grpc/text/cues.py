"""Segments cut into subtitles that can be read: lines of a bearable length, long enough on the screen, one at a time.

After the guides of broadcasters (BBC, Netflix): two lines of 42 characters (21 of Chinese or Japanese, which are twice
as wide), 7 s at most, 1 s at least where the next one leaves room, cut at the end of a sentence or clause.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from typeless_grpc.speech.transcript import Segment

MAX_LINE_COLUMNS = 42
MAX_LINES = 2
MAX_CUE_MS = 7_000
MIN_CUE_MS = 1_000
READ_COLUMNS_PER_S = 20  # how fast most people read: BBC's 160 to 180 words a minute, Netflix's 20 characters a second
_TOKEN = re.compile(r"(?:\S|[\u00a0\u202f])+")  # a no-break space does not break
_CLAUSE_ENDS = ",;:—、，；："
_SENTENCE_ENDS = ".!?…。！？"


@dataclass(frozen=True)
class Cue:
    """What is shown at once: lines, and from when to when in milliseconds. channel: of the segment it comes from."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    channel: int = 0


@dataclass(frozen=True)
class _Piece:
    """A part of the text that is never cut, where it stands and when it was said."""

    text: str
    has_space_before: bool
    start_s: float
    end_s: float


def cues(segments: Sequence[Segment], *, audio_s: float) -> list[Cue]:
    """Every segment's text as cues, in order of time and without overlap; their texts together are the segments'.

    Segments of several channels may overlap: then the earlier cue makes way. audio_s: no cue ends later.
    """
    spoken = [cue for segment in segments for cue in _spoken(segment)]
    spoken.sort(key=lambda cue: cue.start_ms)
    return _timed(_with_company(spoken), round(audio_s * 1000))


def _with_company(spoken: Sequence[Cue]) -> list[Cue]:
    """A cue too short to be read shares the screen with the one that follows, where both fit."""
    kept: list[Cue] = []
    for cue in spoken:
        last = kept[-1] if kept else None
        if (
            last is not None
            and last.channel == cue.channel
            and cue.start_ms - last.start_ms < MIN_CUE_MS
            and len(last.lines) + len(cue.lines) <= MAX_LINES
            and cue.end_ms - last.start_ms <= MAX_CUE_MS
        ):
            kept[-1] = Cue(last.start_ms, max(last.end_ms, cue.end_ms), last.lines + cue.lines, cue.channel)
        else:
            kept.append(cue)
    return kept


def _spoken(segment: Segment) -> Iterator[Cue]:
    """A segment's cues with the times at which they were said."""
    group: list[_Piece] = []
    for piece in _pieces(segment):
        if group and not _fits([*group, piece]):
            head, tail = _cut(group)
            yield _cue(head, segment.channel)
            group = tail
            if group and not _fits([*group, piece]):
                yield _cue(group, segment.channel)
                group = []
        group.append(piece)
    if group:
        yield _cue(group, segment.channel)


def _pieces(segment: Segment) -> list[_Piece]:
    """The text's words, or what fits on a line of one that has no spaces, with the words' times where there are any."""
    text = segment.text
    spans = [span for token in _TOKEN.finditer(text) for span in _breakable(token[0], token.start())]
    clock = _Clock(segment)
    return [
        _Piece(text[start:end], start > 0 and text[start - 1].isspace(), clock.at(start), clock.at(end, is_end=True))
        for start, end in spans
    ]


def _breakable(token: str, offset: int) -> Iterator[tuple[int, int]]:
    """Where a token may be broken: before any wide character that is no mark, and where it is longer than a line."""
    start, width = 0, 0
    for i, character in enumerate(token):
        wide = _columns(character) > 1
        is_mark = unicodedata.category(character).startswith(("P", "M"))
        if i > start and not is_mark and (wide or _columns(token[i - 1]) > 1 or width >= MAX_LINE_COLUMNS):
            yield offset + start, offset + i
            start, width = i, 0
        width += _columns(character)
    yield offset + start, offset + len(token)


class _Clock:
    """When a character of a segment was said: by its words, or by its share of the segment."""

    def __init__(self, segment: Segment) -> None:
        self._marks: list[tuple[int, float]] = [(0, segment.start_s)]
        position = 0
        for word in segment.words:
            start = segment.text.find(word.text, position)
            if start < 0:
                continue
            position = start + len(word.text)
            self._marks += [(start, word.start_s), (position, word.end_s)]
        self._marks.append((len(segment.text), segment.end_s))

    def at(self, character: int, *, is_end: bool = False) -> float:
        """The time before this character, or with is_end after the one before it."""
        before = [mark for mark in self._marks if mark[0] <= character]
        after = [mark for mark in self._marks if mark[0] >= character]
        exact = [time_s for position, time_s in self._marks if position == character]
        if exact:
            return exact[0] if is_end and len(exact) > 1 else exact[-1]
        (left, left_s), (right, right_s) = before[-1], after[0]
        return left_s + (right_s - left_s) * (character - left) / (right - left)


def _cue(pieces: Sequence[_Piece], channel: int) -> Cue:
    start_ms, end_ms = round(pieces[0].start_s * 1000), round(pieces[-1].end_s * 1000)
    return Cue(start_ms, max(start_ms, end_ms), tuple(_lines(pieces)), channel)


def _fits(pieces: Sequence[_Piece]) -> bool:
    return len(_lines(pieces)) <= MAX_LINES and (pieces[-1].end_s - pieces[0].start_s) * 1000 <= MAX_CUE_MS


def _cut(pieces: list[_Piece]) -> tuple[list[_Piece], list[_Piece]]:
    """Cut behind the first third, at the end of a sentence or else of a clause; else behind all of them."""
    for ends in (_SENTENCE_ENDS, _CLAUSE_ENDS):
        for i in range(len(pieces) - 1, len(pieces) // 3 - 1, -1):
            if pieces[i].text[-1] in ends:
                return pieces[: i + 1], pieces[i + 1 :]
    return pieces, []


def _lines(pieces: Sequence[_Piece]) -> list[str]:
    """As few lines as can be; two are about equally long, the way people find them easiest to read."""
    lines = _wrapped(pieces, MAX_LINE_COLUMNS)
    if len(lines) != 2:
        return lines
    for width in range(max(1, sum(map(_columns, lines)) // 2), MAX_LINE_COLUMNS):
        balanced = _wrapped(pieces, width)
        if len(balanced) == 2:
            return balanced
    return lines


def _wrapped(pieces: Sequence[_Piece], width: int) -> list[str]:
    lines = [""]
    for piece in pieces:
        longer = lines[-1] + (" " if piece.has_space_before and lines[-1] else "") + piece.text
        if lines[-1] and _columns(longer) > width:
            lines.append(piece.text)
        else:
            lines[-1] = longer
    return lines


def _columns(text: str) -> int:
    """How wide a text is: 2 for each wide character (Unicode Annex 11), 0 for a combining mark."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _timed(spoken: Sequence[Cue], audio_ms: int) -> list[Cue]:
    """Cues one after the other, each at least a millisecond long, and long enough to be read where there is room."""
    timed: list[Cue] = []
    free_ms = 0  # from here on nothing is shown yet
    for i, cue in enumerate(spoken):
        n_after = len(spoken) - i - 1
        last_ms = max(free_ms, audio_ms - n_after - 1)  # the others need a millisecond each
        start = min(max(cue.start_ms, free_ms), last_ms)
        end = min(max(cue.end_ms, start + _to_read_ms(cue)), _next_start_ms(spoken, i, start, audio_ms))
        free_ms = max(start + 1, min(end, last_ms + 1))
        timed.append(Cue(start, free_ms, cue.lines, cue.channel))
    return timed


def _to_read_ms(cue: Cue) -> int:
    columns = sum(map(_columns, cue.lines))
    return min(MAX_CUE_MS, max(MIN_CUE_MS, columns * 1000 // READ_COLUMNS_PER_S))


def _next_start_ms(spoken: Sequence[Cue], i: int, start_ms: int, audio_ms: int) -> int:
    """When the next cue begins; where two channels speak at once, not before this one can be noticed."""
    if i + 1 == len(spoken):
        return audio_ms
    following = spoken[i + 1]
    if following.channel == spoken[i].channel:
        return following.start_ms
    return max(following.start_ms, start_ms + MIN_CUE_MS)
