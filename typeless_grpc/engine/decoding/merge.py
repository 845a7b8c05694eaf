"""Merges the texts of overlapping windows, without doubling or losing words.

At the edges of a window words are cut off or made up, so from some word of the overlap on, the text of the later window
replaces that of the earlier one. That word is one that both windows have at about the same time, as near to the middle
of the overlap as possible. If they have no word in common, it is a moment near the middle that cuts no word.

Joining is associative as long as no moment lies in more than two windows: each join reads one overlap only, and changes
no times. Times are put in order at the very end.
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
# A segment that a seam cut to so few words joins its neighbour, unless a pause separates them.
FRAGMENT_WORDS = 3
FRAGMENT_PAUSE_S = 0.5
LONGEST_SEGMENT_S = 30.0


@dataclass(frozen=True)
class PartialTranscript:
    """The segments between two moments of the recording, in seconds: those of one window, or of several joined.

    segments: in order. A segment with words may be cut between them; one without is kept or dropped as a whole.
    """

    start_s: float
    end_s: float
    segments: tuple[Segment, ...]


def merge(parts: Sequence[PartialTranscript]) -> tuple[Segment, ...]:
    """Return all segments, in order of time. parts: in order of start, no moment in more than two."""
    if not parts:
        return ()
    whole = functools.reduce(join, parts).segments
    originals = {id(segment) for part in parts for segment in part.segments}
    cut = {id(segment) for segment in whole} - originals
    return tuple(_with_ordered_times(_without_fragments(whole, cut)))


def join(left: PartialTranscript, right: PartialTranscript) -> PartialTranscript:
    """Join two parts. right: starts and ends later; if they do not overlap, all of both is kept."""
    if right.start_s >= left.end_s:
        return PartialTranscript(left.start_s, right.end_s, left.segments + right.segments)
    n_left, n_right = _seam(left, right)
    kept = (*_slice(left.segments, 0, n_left), *_slice(right.segments, n_right, None))
    return PartialTranscript(left.start_s, right.end_s, kept)


def _seam(left: PartialTranscript, right: PartialTranscript) -> tuple[int, int]:
    """Return how many words of left to keep, and how many words of right to drop."""
    start_s, end_s = right.start_s, left.end_s
    lefts, rights = _all_words(left.segments), _all_words(right.segments)
    first = next((i for i, word in enumerate(lefts) if _middle_s(word) >= start_s), len(lefts))
    last = next((i for i, word in enumerate(rights) if _middle_s(word) >= end_s), len(rights))
    middle_s = (start_s + end_s) / 2
    pairs = _common_words(lefts[first:], rights[:last])
    if pairs:
        i, j = min(pairs, key=lambda pair: (abs(_middle_s(lefts[first + pair[0]]) - middle_s), pair))
        return first + i + 1, j + 1
    if not (lefts[first:] and rights[:last]):  # at most one of them has words there
        return len(lefts), 0
    cut_s = _quietest_moment_s(lefts[first:], rights[:last], start_s, end_s)
    n_left = first + sum(_middle_s(word) < cut_s for word in lefts[first:])
    return n_left, sum(_middle_s(word) < cut_s for word in rights[:last])


def _common_words(lefts: Sequence[Word], rights: Sequence[Word]) -> list[tuple[int, int]]:
    """Return pairs of the same word at about the same time: the longest common subsequence."""
    left_texts, right_texts = [_normalized(word) for word in lefts], [_normalized(word) for word in rights]
    longest = [[0] * (len(rights) + 1) for _ in range(len(lefts) + 1)]

    def same(i: int, j: int) -> bool:
        near = abs(_middle_s(lefts[i]) - _middle_s(rights[j])) <= SAME_WORD_S
        return near and bool(left_texts[i]) and left_texts[i] == right_texts[j]

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


def _quietest_moment_s(lefts: Sequence[Word], rights: Sequence[Word], start_s: float, end_s: float) -> float:
    """Return the moment that cuts fewest words, and of those the one nearest to the middle."""
    middle_s = (start_s + end_s) / 2
    words = (*lefts, *rights)
    edges = (edge for word in words for edge in (word.start_s, word.end_s) if start_s <= edge <= end_s)

    def badness(moment_s: float) -> tuple[int, float, float]:
        n_cut = sum(word.start_s < moment_s < word.end_s for word in words)
        return n_cut, abs(moment_s - middle_s), moment_s

    return min((middle_s, *edges), key=badness)


def _all_words(segments: Sequence[Segment]) -> list[Word]:
    return [word for segment in segments for word in _words(segment)]


def _words(segment: Segment) -> tuple[Word, ...]:
    """Return a segment's words; a segment without words counts as one."""
    return segment.words or (Word(segment.text, segment.start_s, segment.end_s, segment.confidence),)


def _slice(segments: Sequence[Segment], start: int, end: int | None) -> Iterator[Segment]:
    """Yield the segments from one word to another, counted over all of them; end None is to the end."""
    position = 0
    for segment in segments:
        n_words = len(_words(segment))
        first = min(max(0, start - position), n_words)
        last = n_words if end is None else min(max(0, end - position), n_words)
        position += n_words
        if first < last:
            yield segment if (first, last) == (0, n_words) else _part(segment, first, last)


def _part(segment: Segment, first: int, last: int) -> Segment:
    """Return a segment's words from first to last, exclusive, with their part of its text."""
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


def _without_fragments(segments: Sequence[Segment], cut: Collection[int]) -> list[Segment]:
    """Return the segments, with fragments that a seam left joined to their neighbours.

    cut: ids of the segments that a seam cut.
    """
    kept: list[Segment] = []
    for segment in segments:
        last = kept[-1] if kept else None
        is_fragment = last is not None and any(
            len(one.words) <= FRAGMENT_WORDS and id(one) in cut for one in (last, segment)
        )
        if last is not None and is_fragment and _belong_together(last, segment):
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
    return is_one_language and is_short and after.start_s - before.end_s <= FRAGMENT_PAUSE_S


def _with_ordered_times(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield the segments with times that never go back."""
    now_s = 0.0
    for segment in segments:
        words = []
        start_s = max(now_s, segment.start_s)
        now_s = start_s
        for word in segment.words:
            word_start_s = max(now_s, word.start_s)
            now_s = max(word_start_s, word.end_s)
            words.append(replace(word, start_s=word_start_s, end_s=now_s))
        now_s = max(now_s, segment.end_s)
        yield replace(segment, start_s=start_s, end_s=now_s, words=tuple(words))


def _middle_s(word: Word) -> float:
    return (word.start_s + word.end_s) / 2


def _normalized(word: Word) -> str:
    """Return the word without punctuation and case; empty for punctuation alone."""
    return "".join(one for one in unicodedata.normalize("NFKC", word.text).casefold() if one.isalnum())
