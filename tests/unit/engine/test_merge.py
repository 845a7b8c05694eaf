from __future__ import annotations

import functools
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.decoding.merge import PartialTranscript, join, merge
from typeless_grpc.speech.transcript import Segment, Word

# A recording in which no word is like its neighbours.
SPOKEN = tuple(Word(f"w{i}", i * 0.4, i * 0.4 + 0.3, 0.9) for i in range(150))


def segment(words: tuple[Word, ...]) -> Segment:
    return Segment(words[0].start_s, words[-1].end_s, " ".join(w.text for w in words), "en", 0.9, 0.1, words)


def window(
    start_s: float, end_s: float, words: tuple[Word, ...] = SPOKEN, *, per_segment: int = 7
) -> PartialTranscript:
    """The transcript of a window by a perfect model: the words that are whole in it."""
    recognized = [word for word in words if start_s <= word.start_s and word.end_s <= end_s]
    rows = [tuple(recognized[i : i + per_segment]) for i in range(0, len(recognized), per_segment)]
    return PartialTranscript(start_s, end_s, tuple(segment(row) for row in rows))


def texts(segments: tuple[Segment, ...]) -> list[str]:
    return [word.text for one in segments for word in one.words]


def test_words_of_both_windows_are_kept_once():
    whole = merge([window(0.0, 10.0), window(8.0, 18.0)])
    assert texts(whole) == texts(window(0.0, 18.0).segments)
    assert " ".join(one.text for one in whole) == " ".join(texts(whole))


def test_a_word_cut_off_at_the_edge_is_taken_from_the_window_that_has_it_whole():
    left = window(0.0, 4.1)
    cut = Word("w1", 4.0, 4.1, 0.2)  # "w10", cut off
    left = PartialTranscript(0.0, 4.1, (*left.segments, segment((cut,))))
    assert texts(merge([left, window(2.0, 8.0)])) == texts(window(0.0, 8.0).segments)


def test_a_made_up_word_at_the_start_of_a_window_is_dropped():
    made_up = segment((Word("Thanks", 6.0, 6.2, 0.2),))
    right = window(6.2, 14.0)
    right = PartialTranscript(6.0, 14.0, (made_up, *right.segments))
    assert texts(merge([window(0.0, 9.0), right])) == texts(window(0.0, 14.0).segments)


def test_words_are_compared_without_case_and_punctuation():
    left = PartialTranscript(0.0, 3.0, (segment((Word("Hello,", 0.5, 1.0, 0.9), Word("world", 2.0, 2.5, 0.9))),))
    right = PartialTranscript(1.5, 5.0, (segment((Word("World.", 2.1, 2.6, 0.9), Word("Bye", 3.5, 4.0, 0.9))),))
    assert texts(merge([left, right])) == ["Hello,", "world", "Bye"]


def test_the_same_word_at_another_time_is_another_word():
    left = PartialTranscript(0.0, 4.0, (segment((Word("no", 1.0, 1.2, 0.9), Word("no", 2.2, 2.4, 0.9))),))
    right = PartialTranscript(2.0, 6.0, (segment((Word("no", 2.2, 2.4, 0.9), Word("no", 3.6, 3.8, 0.9))),))
    assert texts(merge([left, right])) == ["no", "no", "no"]


def test_windows_without_a_common_word_are_cut_in_a_pause():
    left = PartialTranscript(0.0, 4.0, (segment((Word("one", 0.5, 1.0, 0.9), Word("two", 2.0, 2.9, 0.9))),))
    right = PartialTranscript(1.8, 6.0, (segment((Word("too", 2.1, 2.9, 0.9), Word("three", 4.5, 5.0, 0.9))),))
    assert texts(merge([left, right])) in (["one", "two", "three"], ["one", "too", "three"])


def test_windows_that_do_not_overlap_are_kept_whole():
    assert texts(merge([window(0.0, 5.0), window(5.0, 9.0)])) == texts(
        (*window(0.0, 5.0).segments, *window(5.0, 9.0).segments)
    )


def test_words_of_only_one_window_are_kept():
    alone = texts(window(0.0, 5.0).segments)
    assert texts(merge([window(0.0, 5.0), PartialTranscript(4.0, 9.0, ())])) == alone
    assert texts(
        merge([PartialTranscript(0.0, 3.0, ()), PartialTranscript(2.0, 5.0, window(2.0, 5.0).segments)])
    ) == texts(window(2.0, 5.0).segments)


def test_fragments_at_a_seam_join_their_sentence():
    left = PartialTranscript(0.0, 5.0, (segment(SPOKEN[:9]), segment(SPOKEN[9:12])))
    right = PartialTranscript(3.0, 9.0, (segment(SPOKEN[8:20]),))
    whole = merge([left, right])
    assert texts(whole) == [word.text for word in SPOKEN[:20]]
    assert all(len(one.words) > 3 for one in whole)
    assert all(one.text == " ".join(word.text for word in one.words) for one in whole)


def test_no_windows_give_no_segments():
    assert merge([]) == ()


@pytest.mark.parametrize("shift_s", [-0.2, 0.0, 0.2])
def test_times_never_go_back_even_if_windows_disagree(shift_s: float):
    moved = tuple(Word(w.text, max(0.0, w.start_s + shift_s), w.end_s + shift_s, 0.9) for w in SPOKEN[1:])
    whole = merge([window(0.0, 10.0), window(8.0, 18.0, moved)])
    times = [moment for one in whole for word in one.words for moment in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert texts(whole) == texts(window(0.0, 18.2).segments)[: len(texts(whole))]


@st.composite
def windows(draw: st.DrawFn) -> list[PartialTranscript]:
    """Windows of any length over one recording, no moment in more than two, each recognized a little differently."""
    noise = random.Random(draw(st.integers(0, 10_000)))
    n_mistakes = draw(st.integers(0, 4))
    edges = [0.0]
    while edges[-1] < 50.0:
        edges.append(edges[-1] + draw(st.floats(4.0, 20.0)))
    found = []
    for start_s, end_s in itertools.pairwise(edges):
        early_s = max(0.0, start_s - (draw(st.floats(1.0, 3.0)) if found else 0.0))
        jitter_s = noise.uniform(-0.1, 0.1)
        recognized = [
            Word(w.text, max(0.0, w.start_s + jitter_s), w.end_s + jitter_s, 0.9)
            for w in SPOKEN
            if early_s <= w.start_s and w.end_s <= end_s
        ]
        for _ in range(n_mistakes if recognized else 0):
            i = noise.randrange(len(recognized))
            recognized[i] = Word(f"x{noise.random()}", recognized[i].start_s, recognized[i].end_s, 0.4)
        rows = [tuple(recognized[i : i + 5]) for i in range(0, len(recognized), 5)]
        found.append(PartialTranscript(early_s, end_s, tuple(segment(row) for row in rows)))
    return found


@given(windows())
def test_joining_is_associative(parts: list[PartialTranscript]):
    from_left = functools.reduce(join, parts)
    from_right = functools.reduce(lambda right, left: join(left, right), reversed(parts))
    middle = len(parts) // 2
    assert from_left == from_right
    if middle:
        assert from_left == join(functools.reduce(join, parts[:middle]), functools.reduce(join, parts[middle:]))


@given(windows())
def test_no_word_is_lost_or_doubled(parts: list[PartialTranscript]):
    kept = [text for text in texts(merge(parts)) if text.startswith("w")]
    numbers = [int(text[1:]) for text in kept]
    assert numbers == sorted(set(numbers)) == numbers
    everything = {text for part in parts for text in texts(part.segments) if text.startswith("w")}
    mistakes = sum(text.startswith("x") for part in parts for text in texts(part.segments))
    assert len(everything) - len(kept) <= mistakes
