from __future__ import annotations

import pytest

from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.languages import cut_where_it_changes, utterances
from typeless_grpc.engine.planning.cuts import Piece

RATE = 16_000


def piece(*seconds: tuple[float, float]) -> Piece:
    speech = tuple(Span(round(start_s * RATE), round(end_s * RATE)) for start_s, end_s in seconds)
    return Piece(0, speech[-1].end, speech, most_pause=RATE)


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
