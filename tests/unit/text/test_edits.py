from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.build import segment
from typeless_grpc.text.edits import Edit, edited


def test_words_that_become_one_keep_the_time_of_all_and_the_least_confidence():
    before = segment("It costs twenty three dollars today.", words=True)
    after = edited(before, [Edit(9, 29, "$23")])
    assert after.text == "It costs $23 today."
    assert [word.text for word in after.words] == ["It", "costs", "$23", "today."]
    assert (after.words[2].start_s, after.words[2].end_s) == (before.words[2].start_s, before.words[4].end_s)
    assert after.words[2].confidence == min(word.confidence for word in before.words[2:5])


def test_a_word_that_becomes_two_shares_its_time():
    before = segment("I am gonna go", words=True, end_s=4.0)
    after = edited(before, [Edit(5, 10, "going to")])
    assert [word.text for word in after.words] == ["I", "am", "going", "to", "go"]
    assert after.words[2].start_s == before.words[2].start_s
    assert after.words[2].end_s == after.words[3].start_s
    assert after.words[3].end_s == before.words[2].end_s


def test_as_many_words_as_before_keep_their_own_times():
    before = segment("new york is big", words=True)
    after = edited(before, [Edit(0, 8, "New York")])
    assert [(word.start_s, word.end_s) for word in after.words] == [(w.start_s, w.end_s) for w in before.words]


def test_a_removed_word_takes_its_time_with_it():
    before = segment("So, um, I think", words=True)
    after = edited(before, [Edit(3, 7, "")])
    assert after.text == "So, I think"
    assert after.words == (before.words[0], *before.words[2:])


def test_a_mark_left_alone_belongs_to_the_word_before():
    before = segment("I think, um.", words=True)
    after = edited(before, [Edit(7, 8, ""), Edit(8, 11, "")])
    assert after.text == "I think."
    assert [word.text for word in after.words] == ["I", "think."]
    assert after.words[1].end_s == before.words[1].end_s


def test_a_text_that_becomes_empty_has_no_words():
    after = edited(segment("Um.", words=True), [Edit(0, 3, "")])
    assert (after.text, after.words) == ("", ())


@pytest.mark.parametrize("language", ["en", "zh"])
@given(data=st.data())
def test_words_and_text_agree_after_any_edits(language: str, data: st.DataObject):
    letters = "ab,. é" if language == "en" else "中文字，。"
    text = data.draw(st.text(alphabet=letters, max_size=40).map(lambda one: " ".join(one.split())))
    before = segment(text, language, words=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edits = [
        Edit(start, end, data.draw(st.text(alphabet=letters, max_size=6)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    expected, position = "", 0
    for edit in edits:
        expected += text[position : edit.start] + edit.text
        position = edit.end
    expected += text[position:]

    after = edited(before, edits)

    assert after.text == expected.strip() or after == before
    times = [moment for word in after.words for moment in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert not times or (before.start_s <= times[0] and times[-1] <= before.end_s + 1e-9)
    position = 0
    for word in after.words:
        assert word.text == word.text.strip() != ""
        position = after.text.index(word.text, position) + len(word.text)
    assert edited(segment(text, language), edits).text == after.text
