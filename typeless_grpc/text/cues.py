"""Cuts segments into readable subtitles: short lines, long enough on the screen, one at a time.

After the guides of broadcasters (BBC, Netflix): two lines of 42 characters (21 of Chinese or Japanese, which are twice
as wide), at most 7 s, at least 1 s if the next one leaves room, cut at the end of a sentence or clause.
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
    """One subtitle: its lines, start and end in milliseconds, and the channel of its segment."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    channel: int = 0


@dataclass(frozen=True)
class _Fragment:
    """A part of the text that is never cut, and its time."""

    text: str
    has_space_before: bool
    start_s: float
    end_s: float


def cues(segments: Sequence[Segment], *, audio_s: float) -> list[Cue]:
    """Return the text of all segments as cues, in order of time and without overlap. No text is lost or repeated.

    Segments of several channels may overlap: then the earlier cue ends early. audio_s: no cue ends later.
    """
    spoken = [cue for segment in segments for cue in _spoken(segment)]
    spoken.sort(key=lambda cue: cue.start_ms)
    return _timed(_with_company(spoken), round(audio_s * 1000))


def _with_company(spoken: Sequence[Cue]) -> list[Cue]:
    """Join each cue that is too short to be read with the next one, if both fit on the screen."""
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
    """Yield the cues of a segment, with the times of their words."""
    group: list[_Fragment] = []
    for fragment in _fragments(segment):
        if group and not _fits([*group, fragment]):
            head, tail = _cut(group)
            yield _cue(head, segment.channel)
            group = tail
            if group and not _fits([*group, fragment]):
                yield _cue(group, segment.channel)
                group = []
        group.append(fragment)
    if group:
        yield _cue(group, segment.channel)


def _fragments(segment: Segment) -> list[_Fragment]:
    """Return the text's words, or what fits on a line of one that has no spaces, with the words' times, if any."""
    text = segment.text
    spans = [span for token in _TOKEN.finditer(text) for span in _breakable(token[0], token.start())]
    clock = _Clock(segment)
    return [
        _Fragment(text[start:end], start > 0 and text[start - 1].isspace(), clock.at(start), clock.at(end, is_end=True))
        for start, end in spans
    ]


def _breakable(token: str, offset: int) -> Iterator[tuple[int, int]]:
    """Yield where a token may be broken: before wide characters that are no marks, and at the length of a line."""
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
    """The time of each character of a segment: from its words, or from its share of the segment."""

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
        """Return the time before this character, or with is_end after the one before it."""
        before = [mark for mark in self._marks if mark[0] <= character]
        after = [mark for mark in self._marks if mark[0] >= character]
        exact = [time_s for position, time_s in self._marks if position == character]
        if exact:
            return exact[0] if is_end and len(exact) > 1 else exact[-1]
        (left, left_s), (right, right_s) = before[-1], after[0]
        return left_s + (right_s - left_s) * (character - left) / (right - left)


def _cue(fragments: Sequence[_Fragment], channel: int) -> Cue:
    start_ms, end_ms = round(fragments[0].start_s * 1000), round(fragments[-1].end_s * 1000)
    return Cue(start_ms, max(start_ms, end_ms), tuple(_lines(fragments)), channel)


def _fits(fragments: Sequence[_Fragment]) -> bool:
    return len(_lines(fragments)) <= MAX_LINES and (fragments[-1].end_s - fragments[0].start_s) * 1000 <= MAX_CUE_MS


def _cut(fragments: list[_Fragment]) -> tuple[list[_Fragment], list[_Fragment]]:
    """Cut behind the first third, at the end of a sentence or else of a clause; else behind all of them."""
    for ends in (_SENTENCE_ENDS, _CLAUSE_ENDS):
        for i in range(len(fragments) - 1, len(fragments) // 3 - 1, -1):
            if fragments[i].text[-1] in ends:
                return fragments[: i + 1], fragments[i + 1 :]
    return fragments, []


def _lines(fragments: Sequence[_Fragment]) -> list[str]:
    """Break fragments into as few lines as possible; two lines get about equal lengths, which is easiest to read."""
    lines = _wrapped(fragments, MAX_LINE_COLUMNS)
    if len(lines) != 2:
        return lines
    for width in range(max(1, sum(map(_columns, lines)) // 2), MAX_LINE_COLUMNS):
        balanced = _wrapped(fragments, width)
        if len(balanced) == 2:
            return balanced
    return lines


def _wrapped(fragments: Sequence[_Fragment], width: int) -> list[str]:
    lines = [""]
    for fragment in fragments:
        longer = lines[-1] + (" " if fragment.has_space_before and lines[-1] else "") + fragment.text
        if lines[-1] and _columns(longer) > width:
            lines.append(fragment.text)
        else:
            lines[-1] = longer
    return lines


def _columns(text: str) -> int:
    """Return the width of a text: 2 for each wide character (Unicode Annex 11), 0 for a combining mark."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _timed(spoken: Sequence[Cue], audio_ms: int) -> list[Cue]:
    """Return cues without overlap, each at least a millisecond long, and long enough to be read if there is room."""
    timed: list[Cue] = []
    free_ms = 0  # no cue is shown after it yet
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
    """Return when the next cue begins.

    If two channels speak at once, it begins late enough for this one to be noticed.
    """
    if i + 1 == len(spoken):
        return audio_ms
    following = spoken[i + 1]
    if following.channel == spoken[i].channel:
        return following.start_ms
    return max(following.start_ms, start_ms + MIN_CUE_MS)
