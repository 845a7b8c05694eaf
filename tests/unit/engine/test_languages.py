from __future__ import annotations

import pytest

from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.languages import among, chosen, cut_where_it_changes, seem_mixed, utterances
from typeless_grpc.engine.planning.cuts import Piece

RATE = 16_000


def piece(*seconds: tuple[float, float]) -> Piece:
    speech = tuple(Span(round(start_s * RATE), round(end_s * RATE)) for start_s, end_s in seconds)
    return Piece(0, speech[-1].end, speech, most_pause=RATE)


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
def test_a_piece_is_in_the_language_expected_unless_it_clearly_is_not(found, expected, speech_s, language):
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


def test_utterances_end_at_pauses_and_are_long_enough_to_tell():
    looks = utterances(piece((0, 1), (1.1, 3), (3.5, 4), (5, 6.5), (7.0, 7.4)))
    assert [(look.spans[0].start / RATE, look.spans[-1].end / RATE) for look in looks] == [(0, 3), (3.5, 7.4)]
    assert [look.speech_s for look in looks] == [pytest.approx(2.9), pytest.approx(2.4)]


def test_at_most_a_few_seconds_are_looked_at():
    (look,) = utterances(piece((1, 20)))
    assert look.shown() == (1 * RATE, round(5.5 * RATE))


def test_a_piece_is_cut_in_the_pause_where_its_language_changes():
    whole = piece((0, 2), (3, 5), (6, 8), (9, 11))
    looks = utterances(whole)
    languages = [("es", 0.9), ("es", 0.8), ("en", 0.95), ("es", 0.99)]
    parts = cut_where_it_changes(whole, [(look, *one) for look, one in zip(looks, languages, strict=True)])
    assert [(part.start / RATE, part.end / RATE, language, p) for part, language, p in parts] == [
        (0, 5.5, "es", 0.8),
        (5.5, 8.5, "en", 0.95),
        (8.5, 11, "es", 0.99),
    ]
    assert tuple(span for part, _, _ in parts for span in part.speech) == whole.speech
