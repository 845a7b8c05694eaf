from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.decoding.sentences import SentencePolicy, sentences
from typeless_grpc.engine.model import TimedWord

POLICY = SentencePolicy(pause_s=1.0, end_pause_s=0.2, longest_s=5.0)


def words(*spoken: tuple[str, float]) -> list[TimedWord]:
    """Words of half a second each, and the pause before each."""
    found, now_s = [], 0.0
    for text, pause_s in spoken:
        found.append(TimedWord(f" {text}", now_s + pause_s, now_s + pause_s + 0.5, 0.9))
        now_s += pause_s + 0.5
    return found


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([("Yes.", 0), ("No?", 0.3), ("Oh", 0.3)], ["Yes.", "No?", "Oh"], id="full stops and pauses"),
        pytest.param([("Mr.", 0), ("Brown", 0.1)], ["Mr. Brown"], id="a full stop without a pause"),
        pytest.param([("well", 0), ("then", 0.9)], ["well then"], id="a pause without a full stop"),
        pytest.param([("well", 0), ("then", 1.0)], ["well", "then"], id="a long pause"),
        pytest.param([("好。", 0), ("好", 0.3)], ["好。", "好"], id="a full stop of another script"),
        pytest.param([("a", 0)] * 10 + [("b", 0.05)], [" ".join("a" * 10), "b"], id="too long: at the first pause"),
        pytest.param([("a", 0)] * 14, [" ".join("a" * 14)], id="too long, and no pause"),
    ],
)
def test_sentences_end_at_full_stops_and_pauses(spoken: list[tuple[str, float]], expected: list[str]):
    groups = sentences(words(*spoken), POLICY)
    assert ["".join(word.text for word in group).strip() for group in groups] == expected


@given(st.lists(st.tuples(st.sampled_from(["so", "well.", "why?"]), st.sampled_from([0.0, 0.1, 0.5, 2.0]))))
def test_every_word_is_in_one_sentence(spoken: list[tuple[str, float]]):
    groups = sentences(words(*spoken), POLICY)
    assert [word for group in groups for word in group] == words(*spoken)
    assert all(groups)
