"""Where utterances begin and end, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.streaming.endpoint import (
    LIKELY_BEFORE_S,
    Began,
    Ended,
    Endpointer,
    EndpointOptions,
    Paused,
    Resumed,
    Turn,
    Undecided,
)

FRAME_S = FRAME_SAMPLES / 16_000
OPTIONS = EndpointOptions(
    threshold=0.5,
    end_silence_s=10 * FRAME_S,
    doubtful_silence_s=0.0,
    padding_s=4 * FRAME_S,
    context_s=0.0,
    max_utterance_s=30.0,
)


def frames(*runs: tuple[float, int]) -> list[float]:
    """Runs of frames of one probability."""
    return [probability for probability, n in runs for _ in range(n)]


def turns(
    probabilities: list[float],
    options: EndpointOptions = OPTIONS,
    *,
    end: bool = True,
    is_over: Callable[[], bool] = lambda: True,
) -> list[Turn]:
    endpointer = Endpointer(options)
    found: list[Turn] = []
    for probability in probabilities:
        found += endpointer.hear(probability)
        if endpointer.is_undecided:
            found += endpointer.decide(is_over=is_over())
    return found + (endpointer.finalize(len(probabilities) * FRAME_SAMPLES) if end else [])


def test_speech_begins_with_its_first_frame_and_ends_where_the_pause_begins():
    began, paused, ended = turns(frames((0.0, 10), (0.9, 20), (0.0, 10)), end=False)
    assert began == Began(onset=10 * FRAME_SAMPLES, audio_start=6 * FRAME_SAMPLES)
    assert paused == Paused(speech_end=30 * FRAME_SAMPLES, audio_end=34 * FRAME_SAMPLES, is_likely=True)
    assert ended == Ended(speech_end=30 * FRAME_SAMPLES, audio_end=34 * FRAME_SAMPLES)


def test_a_pause_is_told_when_the_utterance_may_be_over_and_again_when_that_is_likely():
    options = EndpointOptions(end_silence_s=20 * FRAME_S, doubtful_silence_s=0.0, padding_s=4 * FRAME_S)
    endpointer = Endpointer(options)
    at = {i: turn for i, p in enumerate(frames((0.9, 20), (0.0, 20))) for turn in endpointer.hear(p)}
    likely = math.ceil(20 - LIKELY_BEFORE_S / FRAME_S)
    speech_end, audio_end = 20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES
    assert {i - 19: turn for i, turn in at.items() if not isinstance(turn, Began)} == {
        4: Paused(speech_end, audio_end, is_likely=False),
        likely: Paused(speech_end, audio_end, is_likely=True),
        20: Ended(speech_end, audio_end),
    }


def test_after_speech_went_on_the_next_pause_is_told_anew():
    found = turns(frames((0.9, 20), (0.0, 9), (0.9, 20), (0.0, 5)), end=False)
    assert [type(turn) for turn in found] == [Began, Paused, Resumed, Paused]


def test_more_is_kept_before_speech_than_after_it_but_nothing_twice():
    options = replace(OPTIONS, context_s=20 * FRAME_S)
    found = turns(frames((0.0, 30), (0.9, 20), (0.0, 10), (0.9, 20), (0.0, 10)), options, end=False)
    first, second = [turn for turn in found if isinstance(turn, Began)]
    ended = next(turn for turn in found if isinstance(turn, Ended))
    assert first.audio_start == 10 * FRAME_SAMPLES
    assert second.audio_start == ended.audio_end == 54 * FRAME_SAMPLES


def test_a_pause_that_is_too_short_ends_nothing():
    found = turns(frames((0.9, 20), (0.0, 9), (0.9, 20)))
    assert [type(turn) for turn in found] == [Began, Paused, Resumed, Ended]
    assert found[-1] == Ended(49 * FRAME_SAMPLES, 49 * FRAME_SAMPLES)


DOUBTING = replace(OPTIONS, doubtful_silence_s=16 * FRAME_S)


def test_a_pause_ends_an_utterance_once_its_text_can_be_trusted():
    endpointer = Endpointer(DOUBTING)
    found = [turn for probability in frames((0.9, 20), (0.0, 10)) for turn in endpointer.hear(probability)]
    undecided = found[-1]
    assert undecided == Undecided(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)
    assert endpointer.is_undecided
    assert endpointer.decide(is_over=True) == [Ended(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)]
    assert not endpointer.is_undecided


def test_of_doubtful_text_only_a_longer_pause_is_the_end():
    found = turns(frames((0.9, 20), (0.0, 16)), DOUBTING, end=False, is_over=lambda: False)
    assert [type(turn) for turn in found] == [Began, Paused, Undecided, Ended]
    assert found[-1] == Ended(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)
    assert not any(
        isinstance(turn, Ended)
        for turn in turns(frames((0.9, 20), (0.0, 15)), DOUBTING, end=False, is_over=lambda: False)
    )


def test_after_speech_went_on_it_is_asked_about_the_text_anew():
    found = turns(frames((0.9, 20), (0.0, 12), (0.9, 20), (0.0, 12)), DOUBTING, end=False, is_over=lambda: False)
    assert [type(turn) for turn in found] == [Began, Paused, Undecided, Resumed, Paused, Undecided]
    assert found[-1] == Undecided(52 * FRAME_SAMPLES, 56 * FRAME_SAMPLES)


def test_nobody_is_asked_where_the_utterance_ends_anyway():
    options = replace(DOUBTING, max_utterance_s=30 * FRAME_S)
    assert not any(isinstance(turn, Undecided) for turn in turns(frames((0.9, 20), (0.0, 10)), options))
    assert not any(isinstance(turn, Undecided) for turn in turns(frames((0.9, 3), (0.0, 30)), DOUBTING))


def test_a_click_is_no_speech():
    assert turns(frames((0.0, 5), (0.9, 3), (0.0, 30))) == []


def test_between_the_two_thresholds_nothing_changes():
    assert [type(turn) for turn in turns(frames((0.9, 10), (0.4, 40), (0.0, 12)))] == [Began, Paused, Ended]
    assert turns(frames((0.4, 40))) == []


@pytest.mark.parametrize(("threshold", "is_speech"), [(0.2, True), (0.8, False)])
def test_the_threshold_decides(threshold, is_speech):
    options = EndpointOptions(threshold=threshold)
    assert bool(turns(frames((0.5, 20)), options)) is is_speech


def test_finalize_ends_the_utterance_at_the_sample():
    endpointer = Endpointer(OPTIONS)
    for _ in range(20):
        endpointer.hear(0.9)
    at = 20 * FRAME_SAMPLES + 100
    assert endpointer.finalize(at) == [Ended(at, at)]
    assert endpointer.finalize(at) == []
    later = [turn for _ in range(10) for turn in endpointer.hear(0.9)]
    assert later == [Began(onset=at, audio_start=at)]  # the frame that is half before and half after


@pytest.mark.parametrize("n_before", [0, 5, 8], ids=["before", "in the first frames", "after a click"])
def test_finalize_without_an_utterance_changes_nothing(n_before):
    probabilities = frames((0.0, 30), (0.9, 3), (0.0, 2), (0.9, 6), (0.0, 12))
    endpointer, found = Endpointer(OPTIONS), []
    for i, probability in enumerate(probabilities):
        if i == 30 + n_before - 3:
            assert endpointer.finalize(i * FRAME_SAMPLES + 7) == []
        found += endpointer.hear(probability)
    assert found == turns(probabilities, end=False)
    assert found


def test_more_padding_after_a_click_does_not_reach_into_settled_audio():
    endpointer = Endpointer(OPTIONS)
    for probability in frames((0.0, 400), (0.9, 2)):
        endpointer.hear(probability)
    settled = endpointer.settled
    endpointer.reconfigure(replace(OPTIONS, padding_s=10.0))
    found = [turn for probability in frames((0.0, 60), (0.9, 20)) for turn in endpointer.hear(probability)]
    (began,) = (turn for turn in found if isinstance(turn, Began))
    assert began.audio_start >= settled


def test_speech_that_is_too_long_is_cut_at_its_longest_pause():
    options = EndpointOptions(
        end_silence_s=20 * FRAME_S, doubtful_silence_s=0.0, padding_s=2 * FRAME_S, max_utterance_s=100 * FRAME_S
    )
    found = turns(frames((0.9, 40), (0.0, 5), (0.9, 20), (0.0, 10), (0.9, 40)), options)
    ended, began = [turn for turn in found if isinstance(turn, Ended | Began)][1:3]
    assert ended == Ended(65 * FRAME_SAMPLES, 67 * FRAME_SAMPLES)
    assert began == Began(75 * FRAME_SAMPLES, 73 * FRAME_SAMPLES)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    options = EndpointOptions(doubtful_silence_s=0.0, padding_s=0.0, max_utterance_s=100 * FRAME_S)
    found = turns(frames((0.9, 85), (0.6, 1), (0.9, 60)), options)
    assert found[1] == Ended(85 * FRAME_SAMPLES, 85 * FRAME_SAMPLES)
    assert found[2] == Began(85 * FRAME_SAMPLES, 85 * FRAME_SAMPLES)


def test_new_options_hold_from_the_next_utterance_on():
    endpointer = Endpointer(OPTIONS)
    found = [turn for _ in range(20) for turn in endpointer.hear(0.9)]
    endpointer.reconfigure(EndpointOptions(end_silence_s=30 * FRAME_S, doubtful_silence_s=0.0, padding_s=0.0))
    found += [turn for _ in range(10) for turn in endpointer.hear(0.0)]
    assert isinstance(found[-1], Ended)
    found = [turn for p in frames((0.9, 20), (0.0, 29)) for turn in endpointer.hear(p)]
    assert not any(isinstance(turn, Ended) for turn in found)
    assert isinstance(endpointer.hear(0.0)[-1], Ended)


def test_more_padding_than_before_does_not_reach_into_settled_audio():
    endpointer = Endpointer(OPTIONS)
    for _ in range(50):
        endpointer.hear(0.0)
    settled = endpointer.settled
    endpointer.reconfigure(EndpointOptions(doubtful_silence_s=0.0, padding_s=30 * FRAME_S))
    began = [turn for _ in range(10) for turn in endpointer.hear(0.9)]
    assert began == [Began(onset=50 * FRAME_SAMPLES, audio_start=settled)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.integers(1, 60)), max_size=30),
    st.sampled_from([20, 64, 300]),
    st.integers(0, 12),
    st.integers(0, 30),
    st.lists(st.booleans(), min_size=1),
)
def test_utterances_are_in_order_apart_and_never_too_long(runs, max_frames, padding_frames, doubtful_frames, sure):
    options = EndpointOptions(
        end_silence_s=10 * FRAME_S,
        doubtful_silence_s=doubtful_frames * FRAME_S,
        padding_s=padding_frames * FRAME_S,
        max_utterance_s=max_frames * FRAME_S,
    )
    probabilities, answers = frames(*runs), itertools.cycle(sure)
    last_end, start = 0, None
    for turn in turns(probabilities, options, is_over=lambda: next(answers)):
        match turn:
            case Began(onset, audio_start):
                assert start is None
                assert last_end <= audio_start <= onset
                start = audio_start
            case Ended(speech_end, audio_end):
                assert start is not None
                assert start <= speech_end <= audio_end <= len(probabilities) * FRAME_SAMPLES
                assert audio_end - start <= max_frames * FRAME_SAMPLES
                last_end, start = audio_end, None
    assert start is None
