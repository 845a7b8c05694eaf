from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.build import segment, transcript
from typeless_grpc.engine.interface import Mode, PostProcessing
from typeless_grpc.errors import InvalidInput
from typeless_grpc.text import profanity
from typeless_grpc.text.post_processing import PostProcessor

LIST = profanity.parse(["gosh", "# a comment", "[en]", "darn*", "[zh]", "坏蛋"])


def processed(text: str, language: str = "en", **options: Any) -> str:
    return PostProcessor(PostProcessing(**options), LIST).segment(segment(text, language)).text


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.NONE, "Um, the the price  is twenty dollars ."),
        (Mode.BASIC, "Um, the price is twenty dollars."),
        (Mode.STANDARD, "The price is $20."),
    ],
)
def test_each_mode_does_more(mode: Mode, expected: str):
    assert processed("Um, the the price  is twenty dollars .", mode=mode) == expected


def test_without_options_nothing_changes_and_there_is_no_raw_text():
    before = transcript(segment("Um, hello  there"))
    assert PostProcessor(PostProcessing(), LIST).transcript(before) is before


def test_raw_text_is_what_was_recognized():
    before = transcript(segment("Um, hello."), segment("Um.", start_s=2.0), segment("Bye.", start_s=3.0))
    after = PostProcessor(PostProcessing(Mode.STANDARD), LIST).transcript(before)
    assert after.raw_text == "Um, hello. Um. Bye."
    assert after.text == "Hello. Bye."
    assert len(after.segments) == 2


def test_a_translation_is_tidied_as_english():
    spoken = segment("twenty dollars", "zh")
    assert PostProcessor(PostProcessing(Mode.STANDARD), LIST, translated=True).segment(spoken).text == "$20"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Darn it, darned GOSH!", "en", "D*** it, d***** G***!"),
        ("darn", "de", "darn"),
        ("gosh", "de", "g***"),
        ("goshawk", "en", "goshawk"),
        ("你这个坏蛋。", "zh", "你这个坏*。"),
    ],
)
def test_profanity_is_masked_by_whole_words(text: str, language: str, expected: str):
    assert processed(text, language, mask_profanity=True) == expected


def test_the_list_that_comes_along_masks_and_spares():
    shipped = profanity.load()
    mask = PostProcessor(PostProcessing(mask_profanity=True), shipped)
    assert (
        mask.segment(segment("What the fuck, assassin in Scunthorpe")).text == "What the f***, assassin in Scunthorpe"
    )
    for language, text in {"es": "¡Qué mierda!", "fr": "Merde alors", "de": "So ein Scheiß", "zh": "他妈的"}.items():
        assert "*" in mask.segment(segment(text, language)).text


def test_a_list_of_the_operators_own_replaces_it(tmp_path):
    own = tmp_path / "words.txt"
    own.write_text("[en]\nbroccoli\n", encoding="utf-8")
    mask = PostProcessor(PostProcessing(mask_profanity=True), profanity.load(own))
    assert mask.segment(segment("fuck broccoli")).text == "fuck b*******"


@pytest.mark.parametrize("content", [b"[not a language]\nx", b"\xff\xfe\x00"], ids=["section", "bytes"])
def test_a_bad_list_is_refused_by_its_setting(tmp_path, content: bytes):
    bad = tmp_path / "words.txt"
    bad.write_bytes(content)
    with pytest.raises(InvalidInput, match="profanity_file"):
        profanity.load(bad)


@pytest.mark.parametrize(
    ("replacements", "text", "language", "expected"),
    [
        ({"kay": "K"}, "Kay, okay, KAY", "en", "K, okay, K"),
        ({"new york": "NYC", "new": "old"}, "new  york is new", "en", "NYC is old"),
        ({"a": "b", "b": "c"}, "a b", "en", "b c"),
        ({"c++": "C plus plus"}, "I like C++, c++x", "en", "I like C plus plus, c++x"),
        ({"北京": "Beijing"}, "我去北京了", "zh", "我去Beijing了"),
        ({"straße": "Str."}, "Die STRASSE, die Straße", "de", "Die STRASSE, die Str."),
        ({"you know": ""}, "It is, you know, fine", "en", "It is,, fine"),
        ({"well": ""}, "It is well done", "en", "It is done"),
        ({"e.t.": "ET", ".*": "no"}, "e.t. or exty", "en", "ET or exty"),
        ({"a*": "b"}, "a* abc", "en", "b abc"),
    ],
)
def test_replacements_are_whole_words_in_any_case_applied_once(replacements, text, language, expected):
    assert processed(text, language, replacements=replacements) == expected


def test_replacements_come_last():
    options = PostProcessing(Mode.STANDARD, {"$20": "twenty bucks", "g***": "gee"}, mask_profanity=True)
    assert PostProcessor(options, LIST).segment(segment("Gosh, twenty dollars")).text == "gee, twenty bucks"


@given(
    text=st.text(max_size=60).map(lambda one: " ".join(one.split())),
    language=st.sampled_from(["en", "es", "fr", "de", "zh", "th", ""]),
    mode=st.sampled_from(Mode),
    mask=st.booleans(),
)
def test_text_is_the_same_with_words_and_without(text: str, language: str, mode: Mode, mask: bool):
    post = PostProcessor(PostProcessing(mode, {"a": "b c"}, mask), LIST)
    with_words = post.segment(segment(text, language, words=True))
    assert with_words.text == post.segment(segment(text, language)).text
    position = 0
    for word in with_words.words:
        position = with_words.text.index(word.text, position) + len(word.text)
