from __future__ import annotations

from dataclasses import replace

import pytest

from typeless_grpc.engine.decoding.quality import (
    Issue,
    compression_ratio,
    issues_of,
)
from typeless_grpc.engine.model import Hypothesis

SENTENCE = "The train to the coast leaves in twenty minutes."
GOOD = Hypothesis(SENTENCE, avg_logprob=-0.3)
LOW = -0.5  # the tests' own threshold, so that settling a better one by measurement changes no test


def test_a_good_text_has_no_issues():
    assert issues_of(GOOD, 2.9, low_logprob=LOW) == frozenset()


@pytest.mark.parametrize(
    ("changes", "speech_s", "issue"),
    [
        pytest.param({"text": ""}, 2.9, Issue.EMPTY, id="no text where someone speaks"),
        pytest.param({"text": "word and another one " * 6}, 2.9, Issue.TOO_FAST, id="more than anybody can say"),
        pytest.param({"is_cut_off": True}, 2.9, Issue.CUT_OFF, id="no end"),
        pytest.param({"avg_logprob": -0.51}, 2.9, Issue.LOW_CONFIDENCE, id="improbable"),
    ],
)
def test_each_issue_is_found(changes: dict[str, object], speech_s: float, issue: Issue):
    assert issues_of(replace(GOOD, **changes), speech_s, low_logprob=LOW) == {issue}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        pytest.param("", 0.0, id="no text where nobody speaks"),
        pytest.param("", 0.4, id="no text where a moment sounds like speech"),
        pytest.param("Yes.", 1.7, id="a short answer"),
        pytest.param("Yes.", 0.0, id="a word where no speech was found"),
        pytest.param("No, no, no, no, no, no, no, no.", 4.0, id="a word that is spoken eight times"),
    ],
)
def test_an_unusual_text_has_no_issues(text: str, speech_s: float):
    assert issues_of(replace(GOOD, text=text), speech_s, low_logprob=LOW) == frozenset()


def test_the_compression_ratio_is_whispers():
    assert compression_ratio("") == 0.0
    assert compression_ratio("again and again " * 20) > 2.4 > compression_ratio(SENTENCE)
