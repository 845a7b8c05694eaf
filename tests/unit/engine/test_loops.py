"""Loops of the decoder, and speech that repeats itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.decoding.loops import may_loop, remove_loops, repeats_itself
from typeless_grpc.engine.model import Hypothesis, TimedWord

SENTENCE = "The train to the coast leaves in twenty minutes."
GOOD = Hypothesis(SENTENCE, avg_logprob=-0.3)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no no no no", id="one word four times"),
        pytest.param("for you, for you, for you", id="two words three times"),
        pytest.param("and then we went and then we went home", id="a phrase twice"),
        pytest.param("well, AND THEN WE WENT. And then we went!", id="whatever the case and punctuation"),
        pytest.param("it began there " + "one two three four five six seven eight nine ten " * 2, id="ten words twice"),
        pytest.param("好好好好", id="a character four times, without spaces"),
        pytest.param("我们去爬山我们去爬山", id="a phrase twice, without spaces"),
    ],
)
def test_a_phrase_that_follows_itself_repeats(text: str):
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("no no no", id="one word three times"),
        pytest.param("bye bye", id="one word twice"),
        pytest.param("so long, so long", id="two words twice"),
        pytest.param("we went home and then we went back and then we slept", id="again, and not at once"),
        pytest.param("-- ... -- ... -- ... -- ...", id="only punctuation"),
        pytest.param("我们去爬山,你们去爬山吗", id="much the same, without spaces"),
    ],
)
def test_a_phrase_that_returns_later_or_rarely_does_not_repeat(text: str):
    assert not repeats_itself(text)


def timed(*words: str, spoken: int | None = None, word_s: float = 0.3) -> list[TimedWord]:
    """Words one after the other; all but the first `spoken` have no time."""
    n_spoken = len(words) if spoken is None else spoken
    starts_s = [min(index, n_spoken) * word_s for index in range(len(words))]
    return [
        TimedWord(f" {word}", start_s, start_s + (word_s if index < n_spoken else 0.0), 0.9)
        for index, (word, start_s) in enumerate(zip(words, starts_s, strict=True))
    ]


def text(words: list[TimedWord]) -> str:
    return "".join(word.text for word in words).strip()


@pytest.mark.parametrize(
    ("phrase", "times", "spoken_times"),
    [
        pytest.param("no", 64, 14, id="a word that is spoken fourteen times"),
        pytest.param("no", 40, 1, id="a word that is spoken once"),
        pytest.param("what has happened to me", 10, 1, id="a sentence that is spoken once"),
        pytest.param("we will rock you", 9, 3, id="a chorus"),
        pytest.param("let me see how can I begin", 2, 1, id="a sentence that is written twice"),
    ],
)
def test_repetitions_with_time_are_kept_and_the_rest_of_a_loop_is_removed(phrase: str, times: int, spoken_times: int):
    unit = phrase.split()
    found = remove_loops(timed("well", *unit * times, spoken=1 + len(unit) * spoken_times))
    assert text(found.words) == " ".join(["well", *unit * spoken_times])
    assert len(found.looped) == len(unit) * (times - spoken_times)
    assert all(word.end_s > word.start_s for word in found.words)


def test_any_repetitions_may_have_the_time():
    words = timed(*["no"] * 9, spoken=9)
    squeezed = [
        replace(word, end_s=word.start_s) if index not in (0, 4, 8) else word for index, word in enumerate(words)
    ]
    found = remove_loops(squeezed)
    assert [(word.start_s, word.end_s) for word in found.words] == [
        (words[index].start_s, words[index].end_s) for index in (0, 4, 8)
    ]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["no"] * 14, id="a word fourteen times"),
        pytest.param(["tear", "down", "the", "fence", "tear", "down", "the", "fence"], id="a phrase twice"),
        pytest.param(SENTENCE.split() * 2, id="a sentence twice"),
        pytest.param(SENTENCE.split(), id="nothing twice"),
        pytest.param([], id="no words"),
    ],
)
def test_spoken_repetitions_are_kept(words: list[str]):
    found = remove_loops(timed(*words))
    assert [word.text.strip() for word in found.words] == words
    assert found.looped == []


def test_words_after_a_loop_are_kept():
    words = [*timed("a", "a", "a", "a", spoken=1), TimedWord(" dog", 1.0, 1.4, 0.9)]
    assert text(remove_loops(words).words) == "a dog"


def test_a_word_without_time_is_kept_unless_it_repeats():
    words = timed("I", "am", "here", spoken=1)
    assert remove_loops(words).words == words


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "!", "好"]), st.booleans()), max_size=60))
def test_loops_are_removed_from_any_words_and_no_other_word_is_lost(marks: list[tuple[str, bool]]):
    words = [
        TimedWord(f" {mark}", index * 0.3, index * 0.3 + 0.3 * has_time, 0.9)
        for index, (mark, has_time) in enumerate(marks)
    ]
    found = remove_loops(words)
    assert len(found.words) + len(found.looped) == len(words)
    assert {word.text for word in found.words} == {word.text for word in words}
    assert sorted(word.start_s for word in found.words) == [word.start_s for word in found.words]


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        (GOOD, False),
        (replace(GOOD, is_cut_off=True), True),
        (replace(GOOD, text="tear down the fence, tear down the fence"), True),
    ],
    ids=["neither", "cut off", "repeats itself"],
)
def test_a_text_is_aligned_if_it_may_loop(hypothesis: Hypothesis, expected: bool):
    assert may_loop(hypothesis) is expected
