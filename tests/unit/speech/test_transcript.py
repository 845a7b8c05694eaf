from __future__ import annotations

from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason, Transcript, Word


def test_a_shifted_transcript_is_later_in_all_its_times():
    word = Word("hello", 0.25, 0.5, 0.9)
    segment = Segment(0.0, 1.0, "hello", "en", 0.9, 0.1, (word,))
    chunk = Transcript((segment,), (Suppressed(segment, SuppressionReason.REPETITION),), "en", 0.9, 1.0, 1.0, "tiny")
    later = chunk.shifted(60.0)
    assert (later.segments[0].start_s, later.segments[0].end_s) == (60.0, 61.0)
    assert (later.segments[0].words[0].start_s, later.segments[0].words[0].end_s) == (60.25, 60.5)
    assert later.suppressed[0].segment.start_s == 60.0


def test_words_stay_in_order_on_a_clock_that_ends_early():
    words = (Word("one", 0.0, 0.4, 0.9), Word("two", 0.3, 2.0, 0.9))
    segment = Segment(0.0, 2.0, "one two", "en", 0.9, 0.1, words)
    placed = segment.retimed(lambda time_s: min(10.0 + time_s, 10.2))
    assert [(word.start_s, word.end_s) for word in placed.words] == [(10.0, 10.2), (10.2, 10.2)]
    assert (placed.start_s, placed.end_s) == (10.0, 10.2)
