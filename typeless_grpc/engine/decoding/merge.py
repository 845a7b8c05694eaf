"""What was heard in windows that overlap, made one: nothing said twice, nothing lost.

At the edges of a window words are cut off or made up, so of two windows the later one is believed from some word of
their overlap on. That is a word both heard, at about the same time, as near to the middle of the overlap as there is
one; where they heard nothing alike, a moment near the middle that lies in nobody's word.

Joining is associative as long as no moment lies in more than two windows: each join looks at one overlap only, and
changes no times; those are put in order at the very end.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from typeless_grpc.speech.transcript import Segment, Word, joined

# How far apart two windows may place the same word: Whisper's word times are good to about 0.2 s inside a window, and
# worse at its edges.
SAME_WORD_S = 0.8
# Of a segment that a seam cut: so few words are no segment of their own, unless a pause sets them off.
SCRAP_WORDS = 3
SCRAP_PAUSE_S = 0.5
LONGEST_SEGMENT_S = 30.0


@dataclass(frozen=True)
class Stretch:
    """What was heard between two moments of the recording, in seconds: one window, or several joined.

    segments: in order; with words, or they are taken or left as a whole.
    """

    start_s: float
    end_s: float
    segments: tuple[Segment, ...]


def merged(stretches: Sequence[Stretch]) -> tuple[Segment, ...]:
    """Everything that was heard, in order of time. stretches: in order of start, no moment in more than two."""
    if not stretches:
        return ()
    whole = functools.reduce(join, stretches).segments
    originals = {id(segment) for stretch in stretches for segment in stretch.segments}
    cut = {id(segment) for segment in whole} - originals
    return tuple(_in_order(_without_scraps(whole, cut)))


def join(left: Stretch, right: Stretch) -> Stretch:
    """Two stretches as one. right: starts and ends later; where they do not overlap, both are kept as they are."""
    if right.start_s >= left.end_s:
        return Stretch(left.start_s, right.end_s, left.segments + right.segments)
    n_left, n_right = _seam(left, right)
    kept = (*_taken(left.segments, 0, n_left), *_taken(right.segments, n_right, None))
    return Stretch(left.start_s, right.end_s, kept)


def _seam(left: Stretch, right: Stretch) -> tuple[int, int]:
    """How many of left's words are kept, and how many of right's are not."""
    start_s, end_s = right.start_s, left.end_s
    lefts, rights = _words(left.segments), _words(right.segments)
    first = next((i for i, word in enumerate(lefts) if _middle_s(word) >= start_s), len(lefts))
    last = next((i for i, word in enumerate(rights) if _middle_s(word) >= end_s), len(rights))
    middle_s = (start_s + end_s) / 2
    pairs = _common(lefts[first:], rights[:last])
    if pairs:
        i, j = min(pairs, key=lambda pair: (abs(_middle_s(lefts[first + pair[0]]) - middle_s), pair))
        return first + i + 1, j + 1
    if not (lefts[first:] and rights[:last]):  # only one of them heard anything there
        return len(lefts), 0
    cut_s = _quiet_moment_s(lefts[first:], rights[:last], start_s, end_s)
    n_left = first + sum(_middle_s(word) < cut_s for word in lefts[first:])
    return n_left, sum(_middle_s(word) < cut_s for word in rights[:last])


def _common(lefts: Sequence[Word], rights: Sequence[Word]) -> list[tuple[int, int]]:
    """Pairs of the same word at about the same time: the longest row of them that is in order on both sides."""
    said_left, said_right = [_said(word) for word in lefts], [_said(word) for word in rights]
    longest = [[0] * (len(rights) + 1) for _ in range(len(lefts) + 1)]

    def same(i: int, j: int) -> bool:
        near = abs(_middle_s(lefts[i]) - _middle_s(rights[j])) <= SAME_WORD_S
        return near and bool(said_left[i]) and said_left[i] == said_right[j]

    for i, j in itertools.product(reversed(range(len(lefts))), reversed(range(len(rights)))):
        matched = 1 + longest[i + 1][j + 1] if same(i, j) else 0
        longest[i][j] = max(matched, longest[i + 1][j], longest[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(lefts) and j < len(rights):
        if same(i, j) and longest[i][j] == 1 + longest[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _quiet_moment_s(lefts: Sequence[Word], rights: Sequence[Word], start_s: float, end_s: float) -> float:
    """Where fewest words are cut, and of such moments the one nearest to the middle."""
    middle_s = (start_s + end_s) / 2
    words = (*lefts, *rights)
    edges = (edge for word in words for edge in (word.start_s, word.end_s) if start_s <= edge <= end_s)

    def badness(moment_s: float) -> tuple[int, float, float]:
        n_cut = sum(word.start_s < moment_s < word.end_s for word in words)
        return n_cut, abs(moment_s - middle_s), moment_s

    return min((middle_s, *edges), key=badness)


def _words(segments: Sequence[Segment]) -> list[Word]:
    return [word for segment in segments for word in _units(segment)]


def _units(segment: Segment) -> tuple[Word, ...]:
    """A segment's words, or all of it as if it were one."""
    return segment.words or (Word(segment.text, segment.start_s, segment.end_s, segment.confidence),)


def _taken(segments: Sequence[Segment], start: int, end: int | None) -> Iterator[Segment]:
    """The segments from one word to another, both counted over all of them; end None is to the end."""
    position = 0
    for segment in segments:
        n_words = len(_units(segment))
        first = min(max(0, start - position), n_words)
        last = n_words if end is None else min(max(0, end - position), n_words)
        position += n_words
        if first < last:
            yield segment if (first, last) == (0, n_words) else _part(segment, first, last)


def _part(segment: Segment, first: int, last: int) -> Segment:
    """A segment's words from first to last, exclusive, with their part of its text."""
    position, spans = 0, []
    for word in segment.words:
        found = segment.text.find(word.text, position)
        start = found if found >= 0 else position
        position = start + len(word.text) if found >= 0 else position
        spans.append((start, position))
    words = segment.words[first:last]
    return replace(
        segment,
        text=segment.text[
            0 if first == 0 else spans[first][0] : len(segment.text) if last == len(spans) else spans[last - 1][1]
        ].strip(),
        start_s=segment.start_s if first == 0 else words[0].start_s,
        end_s=segment.end_s if last == len(spans) else words[-1].end_s,
        words=words,
    )


def _without_scraps(segments: Sequence[Segment], cut: Collection[int]) -> list[Segment]:
    """The segments, where a few words that a seam left over go with the segment that they belong to.

    cut: ids of the segments that a seam cut.
    """
    kept: list[Segment] = []
    for segment in segments:
        last = kept[-1] if kept else None
        is_scrap = last is not None and any(len(one.words) <= SCRAP_WORDS and id(one) in cut for one in (last, segment))
        if last is not None and is_scrap and _belong_together(last, segment):
            kept[-1] = replace(
                last,
                end_s=max(last.end_s, segment.end_s),
                text=joined([last.text, segment.text]),
                confidence=min(last.confidence, segment.confidence),
                no_speech_probability=max(last.no_speech_probability, segment.no_speech_probability),
                words=last.words + segment.words,
            )
        else:
            kept.append(segment)
    return kept


def _belong_together(before: Segment, after: Segment) -> bool:
    is_one_language = (before.language, before.channel) == (after.language, after.channel)
    is_short = after.end_s - before.start_s <= LONGEST_SEGMENT_S
    return is_one_language and is_short and after.start_s - before.end_s <= SCRAP_PAUSE_S


def _in_order(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The segments with times that never go back."""
    now_s = 0.0
    for segment in segments:
        words = []
        start_s = max(now_s, segment.start_s)
        now_s = start_s
        for word in segment.words:
            begin_s = max(now_s, word.start_s)
            now_s = max(begin_s, word.end_s)
            words.append(replace(word, start_s=begin_s, end_s=now_s))
        now_s = max(now_s, segment.end_s)
        yield replace(segment, start_s=start_s, end_s=now_s, words=tuple(words))


def _middle_s(word: Word) -> float:
    return (word.start_s + word.end_s) / 2


def _said(word: Word) -> str:
    """What was said, without marks and case; empty for a mark alone."""
    return "".join(one for one in unicodedata.normalize("NFKC", word.text).casefold() if one.isalnum())
