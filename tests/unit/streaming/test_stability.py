"""Which words are committed, and what becomes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.streaming.stability import Stability, merged, tokens_of


def test_a_word_is_committed_once_three_hypotheses_in_a_row_agree():
    stability = Stability(hold_back=0)
    stability.add("Good mor")
    stability.add("Good morning")
    assert stability.add("God morning") == ("", "God morning")
    stability.add("Good morning and")
    stability.add("Good morning and thanks")
    assert stability.add("Good morning and thank you") == ("Good morning and", " thank you")


def test_two_hypotheses_are_enough_if_so_configured():
    stability = Stability(n_agreeing=2, hold_back=0)
    assert stability.add("Good mor") == ("", "Good mor")
    assert stability.add("Good morning and") == ("Good", " morning and")
    assert stability.add("Good morning and thanks") == ("Good morning and", " thanks")


def test_the_newest_words_are_held_back():
    stability = Stability(n_agreeing=2, hold_back=2)
    stability.add("one two three four")
    assert stability.add("one two three four") == ("one two", " three four")


def test_punctuation_at_the_end_of_the_stable_prefix_may_still_change():
    stability = Stability(n_agreeing=2, hold_back=0)
    stability.add("Good morning.")
    assert stability.add("Good morning.") == ("Good morning", ".")
    assert stability.add("Good morning, all") == ("Good morning", ", all")


@pytest.mark.parametrize(
    ("text", "stable"),
    [("वह घर जा रही है और मैं", "वह घर जा रही है"), ("แล้วรัก", "แล้ว"), ("c# is good, yes!", "c# is")],
    ids=["Hindi", "Thai", "symbols"],
)
def test_no_word_is_cut_before_its_vowel_signs(text, stable):
    stability = Stability(n_agreeing=2, hold_back=2)
    stability.add(text)
    assert stability.add(text)[0] == stable


def test_characters_are_words_where_no_spaces_are_written():
    stability = Stability(n_agreeing=2, hold_back=0)
    stability.add("明天早")
    assert stability.add("明天早上我") == ("明天早", "上我")


@pytest.mark.parametrize(
    ("committed", "text", "expected"),
    [
        ("Good morning", "Good morning, and thanks.", "Good morning, and thanks."),
        ("Good morning", "Good mourning, and thanks.", "Good morning and thanks."),
        ("Good morning", "God morning and thanks.", "Good morning and thanks."),
        ("the cat sat", "cat sat down", "the cat sat down"),
        ("the cat sat", "", "the cat sat"),
        ("", "hello", "hello"),
        ("I am", "you are here", "I am here"),
        ("明天早", "今天早上", "明天早上"),
        ("वह घर", "वो घर जा रही है", "वह घर जा रही है"),
    ],
    ids=[
        "agrees",
        "other word",
        "earlier word",
        "lost word",
        "nothing",
        "nothing committed",
        "all other",
        "characters",
        "signs",
    ],
)
def test_committed_text_begins_the_next_hypotheses(committed, text, expected):
    assert merged(committed, text) == expected


hypotheses = st.lists(
    st.lists(st.sampled_from(["a", "b", "c,", "d.", "天", "e"]), max_size=8).map(" ".join), min_size=1, max_size=8
)


@given(hypotheses, st.integers(0, 3), st.text(alphabet="ab c.天", max_size=12))
def test_the_stable_prefix_only_grows_and_begins_all_that_follows(texts, hold_back, final):
    stability = Stability(2, hold_back)
    committed = ""
    for text in texts:
        stable, unstable = stability.add(text)
        assert stable.startswith(committed)
        assert (stable + unstable).startswith(stable)
        committed = stable
    assert merged(committed, final).startswith(committed)


@given(st.text(alphabet="ab ,.天\n", max_size=20))
def test_tokens_are_the_text(text):
    assert "".join(tokens_of(text)) == text.rstrip()
