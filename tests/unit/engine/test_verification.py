from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.verification import Checks, Doubt, Result, compression_ratio, doubts, repeats_itself, sparse

# The tests' own thresholds, so that settling better ones by measurement changes no test.
CHECKS = Checks(
    short_text_characters=200,
    short_compression=1.6,
    compression=2.4,
    past_end_s=0.7,
    unheard_s=1.0,
    least_characters_per_s=4.0,
    most_characters_per_s=25.0,
    least_avg_logprob=-1.0,
)
GOOD = Result(
    text=" The train to the coast leaves in twenty minutes.",
    avg_logprob=-0.3,
    speech_s=((0.2, 3.1),),
    audio_s=3.5,
    words_end_s=3.0,
)
# Says nothing twice in a row, and yet compresses well.
WORDY = "a hand and a band on a land, a sand in a hand, and a band in the sand on a land. "


def test_a_good_result_is_trusted():
    assert doubts(GOOD, CHECKS) == []


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        pytest.param({"text": ""}, Doubt.EMPTY, id="nothing where someone speaks"),
        pytest.param({"text": "  \n"}, Doubt.EMPTY, id="only space where someone speaks"),
        pytest.param({"text": "I was waiting there for you for you for you for you"}, Doubt.REPETITION, id="loop"),
        pytest.param({"text": WORDY}, Doubt.COMPRESSION, id="compresses too well for a short text"),
        pytest.param({"text": "word and another one " * 6}, Doubt.TOO_FAST, id="more than can be said"),
        pytest.param({"speech_s": ((0.0, 20.0),), "words_end_s": 19.5}, Doubt.TOO_SLOW, id="less than said"),
        pytest.param({"avg_logprob": -1.01}, Doubt.LOW_PROBABILITY, id="improbable"),
        pytest.param({"words_end_s": 4.3}, Doubt.PAST_END, id="last word after the audio"),
        pytest.param({"speech_s": ((0.2, 3.1), (4.0, 5.5))}, Doubt.EARLY_STOP, id="speech after the last word"),
        pytest.param({"words_end_s": 1.5}, Doubt.EARLY_STOP, id="stopped inside the speech"),
    ],
)
def test_each_failure_is_found(changes: dict[str, object], doubt: Doubt):
    assert doubt in doubts(replace(GOOD, **changes), CHECKS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"text": "", "speech_s": ()}, id="nothing where nobody speaks"),
        pytest.param({"text": "", "speech_s": ((0.0, 0.4),)}, id="nothing where a moment sounds like speech"),
        pytest.param({"text": "Yes.", "speech_s": ((0.2, 1.9),), "words_end_s": 1.9}, id="a short answer"),
        pytest.param({"text": "我们去爬山", "speech_s": ((0.2, 3.1),)}, id="few characters of a dense script"),
        pytest.param({"avg_logprob": -1.0}, id="just probable enough"),
        pytest.param({"words_end_s": 4.1}, id="a word just after the audio"),
        pytest.param({"words_end_s": None, "speech_s": ((0.2, 4.9),)}, id="no times known"),
        pytest.param({"text": "Yes.", "speech_s": ()}, id="a word where no speech was found"),
        pytest.param({"text": "No, no, no, that is not what I said at all."}, id="three times is emphasis"),
    ],
)
def test_what_is_only_unusual_is_trusted(changes: dict[str, object]):
    assert doubts(replace(GOOD, **changes), CHECKS) == []  # type: ignore[arg-type]


def test_every_reason_is_told():
    looped = replace(GOOD, text="for you " * 20, avg_logprob=-3.0, words_end_s=9.0)
    assert set(doubts(looped, CHECKS)) >= {Doubt.REPETITION, Doubt.COMPRESSION, Doubt.TOO_FAST, Doubt.LOW_PROBABILITY}


def test_a_long_text_may_compress_better_than_a_short_one():
    wordy = replace(GOOD, text=WORDY * 3, speech_s=((0.0, 25.0),), words_end_s=25.0, audio_s=25.0)
    lenient = replace(CHECKS, compression=100.0)
    assert Doubt.COMPRESSION not in doubts(wordy, lenient)
    assert Doubt.COMPRESSION in doubts(wordy, replace(lenient, compression=2.0))


@pytest.mark.parametrize(
    "changes",
    [{"past_end_s": 2.0}, {"unheard_s": 0.01}, {"least_avg_logprob": -0.1}, {"most_characters_per_s": 5.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_the_thresholds_are_those_that_are_set(changes: dict[str, float]):
    """Each result sits between the two thresholds."""
    at = replace(GOOD, words_end_s=4.5) if "past_end_s" in changes else GOOD
    assert doubts(at, CHECKS) != doubts(at, replace(CHECKS, **changes))


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
def test_saying_it_again_at_once_is_repetition(text: str):
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
        pytest.param("one two three four five six seven eight nine ten eleven " * 2, id="longer than a loop"),
        pytest.param("我们去爬山,你们去爬山吗", id="much the same, without spaces"),
    ],
)
def test_saying_it_later_or_seldom_is_not(text: str):
    assert not repeats_itself(text)


@given(
    st.builds(
        Result,
        text=st.text(max_size=400),
        avg_logprob=st.floats(-10.0, 0.0),
        speech_s=st.lists(st.floats(0.0, 30.0), max_size=6).map(
            lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
        ),
        audio_s=st.floats(0.0, 30.0),
        words_end_s=st.none() | st.floats(0.0, 40.0),
    )
)
def test_any_result_is_judged(result: Result):
    found = doubts(result, CHECKS)
    assert len(set(found)) == len(found)


def test_compression_is_that_of_whisper():
    assert compression_ratio("") == 0.0
    assert compression_ratio("again and again " * 20) > 2.4 > compression_ratio(GOOD.text)


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        pytest.param([(120, 10.0)] * 5, [], id="all-alike"),
        pytest.param([(120, 10.0), (120, 10.0), (50, 10.0), (130, 10.0)], [2], id="one-stopped-early"),
        pytest.param([(120, 10.0), (120, 10.0), (90, 10.0), (130, 10.0)], [], id="one-spoken-slowly"),
        pytest.param([(120, 10.0), (50, 10.0), (130, 10.0)], [], id="too-few-to-compare"),
        pytest.param([(120, 10.0)] * 4 + [(1, 1.0)], [], id="too-short-to-tell"),
        pytest.param([], [], id="none"),
    ],
)
def test_a_piece_that_says_far_less_than_the_others_is_found(pieces, found):
    assert sparse([("x" * n_characters, spoken_s) for n_characters, spoken_s in pieces]) == found
