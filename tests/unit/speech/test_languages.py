from __future__ import annotations

import pytest

from typeless_grpc.speech.languages import LanguageTally, among, chosen, seem_mixed


def test_only_the_allowed_are_possible_and_their_probabilities_add_up():
    found = [("gl", 0.6), ("es", 0.3), ("pt", 0.1)]
    assert among(found, ()) == found
    assert among(found, ("pt", "es")) == [("es", pytest.approx(0.75)), ("pt", pytest.approx(0.25))]
    assert among([("gl", 1.0), ("es", 0.0)], ("es",)) == [("es", 1.0)]


@pytest.mark.parametrize(
    ("found", "expected", "speech_s", "language"),
    [
        ([("de", 0.6), ("en", 0.4)], "", 0.3, "de"),
        ([("de", 0.95), ("en", 0.05)], "en", 4.0, "de"),
        ([("de", 0.6), ("en", 0.4)], "en", 4.0, "en"),
        ([("de", 0.95), ("en", 0.05)], "en", 0.5, "en"),
        ([("en", 0.5), ("de", 0.4)], "en", 0.5, "en"),
    ],
    ids=["nothing known", "clearly another", "not clearly", "too short to tell", "as expected"],
)
def test_a_chunk_is_in_the_expected_language_unless_it_clearly_is_not(found, expected, speech_s, language):
    assert chosen(found, expected, speech_s) == (language, dict(found)[language])


@pytest.mark.parametrize(
    ("found", "mixed"),
    [
        ([("en", 0.97), ("hi", 0.007)], False),
        ([("es", 0.95), ("gl", 0.03), ("la", 0.01)], False),
        ([("es", 0.95), ("en", 0.023)], True),
        ([("es", 0.9), ("gl", 0.06), ("en", 0.03)], True),
        ([("en", 1.0)], False),
    ],
    ids=["one", "a close one", "two", "two behind a close one", "English model"],
)
def test_a_second_language_is_a_sign_unless_it_is_a_close_one(found, mixed):
    assert seem_mixed(found) is mixed


@pytest.mark.parametrize(
    ("parts", "main"),
    [
        ([], ("", 0.0)),
        ([("", 0.0, 4.0)], ("", 0.0)),
        ([("es", 0.7, 2.0), ("en", 0.9, 6.0), ("en", 0.5, 2.0)], ("en", pytest.approx(0.8))),
        ([("es", 0.7, 5.0), ("en", 0.9, 3.0), ("en", 0.9, 3.0)], ("en", pytest.approx(0.9))),
        ([("zh", 1.0, 0.0)], ("zh", pytest.approx(1.0))),
    ],
    ids=["no parts", "unknown", "most of the speech", "in several parts", "given, and nobody speaks"],
)
def test_the_language_of_a_whole_is_that_of_most_of_its_speech(parts, main):
    tally = LanguageTally()
    for language, probability, speech_s in parts:
        tally.add(language, probability, speech_s)
    assert tally.main() == main
