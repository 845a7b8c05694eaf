"""Edits the text of a segment together with its words.

Rules find edits in the text alone. This module applies them, and the times of the words follow. So a segment has the
same text with words and without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from typeless_grpc.speech.transcript import Segment, Word

_TOKEN = re.compile(r"[^ \t\n\r]+")


@dataclass(frozen=True)
class Edit:
    """Write `text` in place of the characters from start to end, end exclusive."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Placed:
    """A word and the position of its text, end exclusive."""

    start: int
    end: int
    word: Word


def edited(segment: Segment, edits: Sequence[Edit]) -> Segment:
    """Return the segment after its edits. edits: in order of start, without overlap.

    An edited word keeps its time. Words that become one have the time from the first start to the last end, and the
    least of their confidences. If a word becomes several, they share its time by their length.
    """
    edits = [edit for edit in edits if segment.text[edit.start : edit.end] != edit.text]
    if not edits:
        return segment
    words = _placed(segment)
    text, placed, position = "", list[_Placed](), 0
    for start, end, inside in _regions(words, edits, len(segment.text)):
        text += segment.text[position:start]
        written = _written(segment.text, start, end, inside)
        touched = [one for one in words if start <= one.start and one.end <= end]
        untouched = [one for one in words if position <= one.start and one.end <= start and one not in touched]
        placed += [
            replace(one, start=len(text) - start + one.start, end=len(text) - start + one.end) for one in untouched
        ]
        placed += _shared(written, len(text), [one.word for one in touched])
        text += written
        position = end
    shift = len(text) - position
    placed += [replace(one, start=one.start + shift, end=one.end + shift) for one in words if one.start >= position]
    text += segment.text[position:]
    left = len(text) - len(text.lstrip())
    words = [replace(one, start=one.start - left, end=one.end - left) for one in placed]
    text = text.strip()
    return replace(segment, text=text, words=tuple(_glued(text, words)))


def _placed(segment: Segment) -> list[_Placed]:
    """Return the position of each word in the text; that of a word that is not in it is empty, where it would be."""
    placed, position = [], 0
    for word in segment.words:
        start = segment.text.find(word.text, position)
        end = start + len(word.text) if start >= 0 else position
        placed.append(_Placed(start if start >= 0 else position, end, word))
        position = end
    return placed


def _regions(
    words: Sequence[_Placed], edits: Sequence[Edit], n_characters: int
) -> Iterator[tuple[int, int, list[Edit]]]:
    """Yield the parts that hold whole words and all edits that touch them, in order: start, end, and the edits."""
    start, end, inside = 0, 0, list[Edit]()
    for edit in edits:
        touched = [one for one in words if one.start < edit.end and edit.start < one.end]
        first = min([edit.start, *(one.start for one in touched)])
        last = max([edit.end, *(one.end for one in touched)])
        if inside and first < end:
            end = max(end, last)
            inside.append(edit)
            continue
        if inside:
            yield start, end, inside
        start, end, inside = first, last, [edit]
    if inside:
        yield start, min(end, n_characters), inside


def _written(text: str, start: int, end: int, edits: Sequence[Edit]) -> str:
    written = ""
    for edit in edits:
        written += text[start : edit.start] + edit.text
        start = edit.end
    return written + text[start:end]


def _shared(text: str, offset: int, words: Sequence[Word]) -> Iterator[_Placed]:
    """Yield the words of a new text at `offset`, with the times of the words it came from."""
    tokens = list(_TOKEN.finditer(text))
    if not words or not tokens:
        return
    start_s, end_s = words[0].start_s, words[-1].end_s
    confidence = min(word.confidence for word in words)
    n_characters, n_before = sum(len(token[0]) for token in tokens), 0
    for i, token in enumerate(tokens):
        if len(tokens) == len(words):
            word = replace(words[i], text=token[0])
        else:
            share_s = (end_s - start_s) / n_characters
            begin_s = start_s + n_before * share_s
            n_before += len(token[0])
            finish_s = end_s if i == len(tokens) - 1 else start_s + n_before * share_s
            word = Word(token[0], begin_s, max(begin_s, finish_s), confidence)
        yield _Placed(offset + token.start(), offset + token.end(), word)


def _glued(text: str, words: Sequence[_Placed]) -> Iterator[Word]:
    """Yield the words, with each separate mark joined to the word it touches."""
    waiting: _Placed | None = None
    for one in words:
        is_mark = not any(character.isalnum() for character in text[one.start : one.end])
        if waiting is not None and is_mark and waiting.end == one.start:
            waiting = replace(waiting, end=one.end, word=replace(waiting.word, text=text[waiting.start : one.end]))
            continue
        if waiting is not None:
            yield waiting.word
        waiting = one
    if waiting is not None:
        yield waiting.word
