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
from typeless_grpc.streaming.endpoint import LIKELY_BEFORE_S, Endpointer, EndpointOptions
from typeless_grpc.streaming.segmentation import Boundary, Endpoint, Onset, Pause, PossibleEndpoint, SpeechResumed

FRAME_S = FRAME_SAMPLES / 16_000
OPTIONS = EndpointOptions(
    threshold=0.5,
    end_silence_s=10 * FRAME_S,
    low_confidence_silence_s=0.0,
    padding_s=4 * FRAME_S,
    context_s=0.0,
    max_utterance_s=30.0,
)


def frames(*runs: tuple[float, int]) -> list[float]:
    """Runs of frames of one probability."""
    return [probability for probability, n in runs for _ in range(n)]


def boundaries(
    probabilities: list[float],
    options: EndpointOptions = OPTIONS,
    *,
    end: bool = True,
    is_endpoint: Callable[[], bool] = lambda: True,
) -> list[Boundary]:
    endpointer = Endpointer(options)
    found: list[Boundary] = []
    for probability in probabilities:
        found += endpointer.take(probability)
        if endpointer.is_undecided:
            found += endpointer.decide(is_endpoint=is_endpoint())
    return found + (endpointer.finalize(len(probabilities) * FRAME_SAMPLES) if end else [])


def test_speech_begins_with_its_first_frame_and_ends_where_the_pause_begins():
    onset, pause, endpoint = boundaries(frames((0.0, 10), (0.9, 20), (0.0, 10)), end=False)
    assert onset == Onset(speech_start=10 * FRAME_SAMPLES, audio_start=6 * FRAME_SAMPLES)
    assert pause == Pause(speech_end=30 * FRAME_SAMPLES, audio_end=34 * FRAME_SAMPLES, is_likely_end=True)
    assert endpoint == Endpoint(speech_end=30 * FRAME_SAMPLES, audio_end=34 * FRAME_SAMPLES)


def test_a_pause_is_reported_once_it_has_padding_and_again_when_the_end_is_likely():
    options = EndpointOptions(end_silence_s=20 * FRAME_S, low_confidence_silence_s=0.0, padding_s=4 * FRAME_S)
    endpointer = Endpointer(options)
    at = {i: boundary for i, p in enumerate(frames((0.9, 20), (0.0, 20))) for boundary in endpointer.take(p)}
    likely = math.ceil(20 - LIKELY_BEFORE_S / FRAME_S)
    speech_end, audio_end = 20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES
    assert {i - 19: boundary for i, boundary in at.items() if not isinstance(boundary, Onset)} == {
        4: Pause(speech_end, audio_end, is_likely_end=False),
        likely: Pause(speech_end, audio_end, is_likely_end=True),
        20: Endpoint(speech_end, audio_end),
    }


def test_after_speech_resumed_the_next_pause_is_reported_anew():
    found = boundaries(frames((0.9, 20), (0.0, 9), (0.9, 20), (0.0, 5)), end=False)
    assert [type(boundary) for boundary in found] == [Onset, Pause, SpeechResumed, Pause]


def test_more_is_kept_before_speech_than_after_it_but_nothing_twice():
    options = replace(OPTIONS, context_s=20 * FRAME_S)
    found = boundaries(frames((0.0, 30), (0.9, 20), (0.0, 10), (0.9, 20), (0.0, 10)), options, end=False)
    first, second = [boundary for boundary in found if isinstance(boundary, Onset)]
    endpoint = next(boundary for boundary in found if isinstance(boundary, Endpoint))
    assert first.audio_start == 10 * FRAME_SAMPLES
    assert second.audio_start == endpoint.audio_end == 54 * FRAME_SAMPLES


def test_a_pause_that_is_too_short_ends_nothing():
    found = boundaries(frames((0.9, 20), (0.0, 9), (0.9, 20)))
    assert [type(boundary) for boundary in found] == [Onset, Pause, SpeechResumed, Endpoint]
    assert found[-1] == Endpoint(49 * FRAME_SAMPLES, 49 * FRAME_SAMPLES)


CONFIDENCE_MATTERS = replace(OPTIONS, low_confidence_silence_s=16 * FRAME_S)


def test_a_pause_ends_an_utterance_of_high_confidence():
    endpointer = Endpointer(CONFIDENCE_MATTERS)
    found = [boundary for probability in frames((0.9, 20), (0.0, 10)) for boundary in endpointer.take(probability)]
    undecided = found[-1]
    assert undecided == PossibleEndpoint(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)
    assert endpointer.is_undecided
    assert endpointer.decide(is_endpoint=True) == [Endpoint(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)]
    assert not endpointer.is_undecided


def test_only_a_longer_pause_ends_an_utterance_of_low_confidence():
    found = boundaries(frames((0.9, 20), (0.0, 16)), CONFIDENCE_MATTERS, end=False, is_endpoint=lambda: False)
    assert [type(boundary) for boundary in found] == [Onset, Pause, PossibleEndpoint, Endpoint]
    assert found[-1] == Endpoint(20 * FRAME_SAMPLES, 24 * FRAME_SAMPLES)
    assert not any(
        isinstance(boundary, Endpoint)
        for boundary in boundaries(
            frames((0.9, 20), (0.0, 15)), CONFIDENCE_MATTERS, end=False, is_endpoint=lambda: False
        )
    )


def test_after_speech_resumed_the_confidence_is_needed_anew():
    found = boundaries(
        frames((0.9, 20), (0.0, 12), (0.9, 20), (0.0, 12)), CONFIDENCE_MATTERS, end=False, is_endpoint=lambda: False
    )
    assert [type(boundary) for boundary in found] == [
        Onset,
        Pause,
        PossibleEndpoint,
        SpeechResumed,
        Pause,
        PossibleEndpoint,
    ]
    assert found[-1] == PossibleEndpoint(52 * FRAME_SAMPLES, 56 * FRAME_SAMPLES)


def test_the_confidence_is_not_needed_where_the_utterance_ends_anyway():
    options = replace(CONFIDENCE_MATTERS, max_utterance_s=30 * FRAME_S)
    assert not any(
        isinstance(boundary, PossibleEndpoint) for boundary in boundaries(frames((0.9, 20), (0.0, 10)), options)
    )
    assert not any(
        isinstance(boundary, PossibleEndpoint)
        for boundary in boundaries(frames((0.9, 3), (0.0, 30)), CONFIDENCE_MATTERS)
    )


def test_a_click_is_no_speech():
    assert boundaries(frames((0.0, 5), (0.9, 3), (0.0, 30))) == []


def test_between_the_two_thresholds_nothing_changes():
    assert [type(boundary) for boundary in boundaries(frames((0.9, 10), (0.4, 40), (0.0, 12)))] == [
        Onset,
        Pause,
        Endpoint,
    ]
    assert boundaries(frames((0.4, 40))) == []


@pytest.mark.parametrize(("threshold", "is_speech"), [(0.2, True), (0.8, False)])
def test_the_threshold_decides(threshold, is_speech):
    options = EndpointOptions(threshold=threshold)
    assert bool(boundaries(frames((0.5, 20)), options)) is is_speech


def test_finalize_ends_the_utterance_at_the_sample():
    endpointer = Endpointer(OPTIONS)
    for _ in range(20):
        endpointer.take(0.9)
    at = 20 * FRAME_SAMPLES + 100
    assert endpointer.finalize(at) == [Endpoint(at, at)]
    assert endpointer.finalize(at) == []
    later = [boundary for _ in range(10) for boundary in endpointer.take(0.9)]
    assert later == [Onset(speech_start=at, audio_start=at)]  # the frame that is half before and half after


@pytest.mark.parametrize("n_before", [0, 5, 8], ids=["before", "in the first frames", "after a click"])
def test_finalize_without_an_utterance_changes_nothing(n_before):
    probabilities = frames((0.0, 30), (0.9, 3), (0.0, 2), (0.9, 6), (0.0, 12))
    endpointer, found = Endpointer(OPTIONS), []
    for i, probability in enumerate(probabilities):
        if i == 30 + n_before - 3:
            assert endpointer.finalize(i * FRAME_SAMPLES + 7) == []
        found += endpointer.take(probability)
    assert found == boundaries(probabilities, end=False)
    assert found


def test_more_padding_after_a_click_does_not_reach_into_settled_audio():
    endpointer = Endpointer(OPTIONS)
    for probability in frames((0.0, 400), (0.9, 2)):
        endpointer.take(probability)
    settled = endpointer.settled
    endpointer.reconfigure(replace(OPTIONS, padding_s=10.0))
    found = [boundary for probability in frames((0.0, 60), (0.9, 20)) for boundary in endpointer.take(probability)]
    (onset,) = (boundary for boundary in found if isinstance(boundary, Onset))
    assert onset.audio_start >= settled


def test_speech_that_is_too_long_is_cut_at_its_longest_pause():
    options = EndpointOptions(
        end_silence_s=20 * FRAME_S, low_confidence_silence_s=0.0, padding_s=2 * FRAME_S, max_utterance_s=100 * FRAME_S
    )
    found = boundaries(frames((0.9, 40), (0.0, 5), (0.9, 20), (0.0, 10), (0.9, 40)), options)
    endpoint, onset = [boundary for boundary in found if isinstance(boundary, Endpoint | Onset)][1:3]
    assert endpoint == Endpoint(65 * FRAME_SAMPLES, 67 * FRAME_SAMPLES)
    assert onset == Onset(75 * FRAME_SAMPLES, 73 * FRAME_SAMPLES)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    options = EndpointOptions(low_confidence_silence_s=0.0, padding_s=0.0, max_utterance_s=100 * FRAME_S)
    found = boundaries(frames((0.9, 85), (0.6, 1), (0.9, 60)), options)
    assert found[1] == Endpoint(85 * FRAME_SAMPLES, 85 * FRAME_SAMPLES)
    assert found[2] == Onset(85 * FRAME_SAMPLES, 85 * FRAME_SAMPLES)


def test_new_options_are_in_force_from_the_next_utterance_on():
    endpointer = Endpointer(OPTIONS)
    found = [boundary for _ in range(20) for boundary in endpointer.take(0.9)]
    endpointer.reconfigure(EndpointOptions(end_silence_s=30 * FRAME_S, low_confidence_silence_s=0.0, padding_s=0.0))
    found += [boundary for _ in range(10) for boundary in endpointer.take(0.0)]
    assert isinstance(found[-1], Endpoint)
    found = [boundary for p in frames((0.9, 20), (0.0, 29)) for boundary in endpointer.take(p)]
    assert not any(isinstance(boundary, Endpoint) for boundary in found)
    assert isinstance(endpointer.take(0.0)[-1], Endpoint)


def test_more_padding_than_before_does_not_reach_into_settled_audio():
    endpointer = Endpointer(OPTIONS)
    for _ in range(50):
        endpointer.take(0.0)
    settled = endpointer.settled
    endpointer.reconfigure(EndpointOptions(low_confidence_silence_s=0.0, padding_s=30 * FRAME_S))
    onset = [boundary for _ in range(10) for boundary in endpointer.take(0.9)]
    assert onset == [Onset(speech_start=50 * FRAME_SAMPLES, audio_start=settled)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.integers(1, 60)), max_size=30),
    st.sampled_from([20, 64, 300]),
    st.integers(0, 12),
    st.integers(0, 30),
    st.lists(st.booleans(), min_size=1),
)
def test_utterances_are_in_order_apart_and_never_too_long(runs, max_frames, padding_frames, low_frames, confident):
    options = EndpointOptions(
        end_silence_s=10 * FRAME_S,
        low_confidence_silence_s=low_frames * FRAME_S,
        padding_s=padding_frames * FRAME_S,
        max_utterance_s=max_frames * FRAME_S,
    )
    probabilities, answers = frames(*runs), itertools.cycle(confident)
    last_end, start = 0, None
    for boundary in boundaries(probabilities, options, is_endpoint=lambda: next(answers)):
        match boundary:
            case Onset(onset, audio_start):
                assert start is None
                assert last_end <= audio_start <= onset
                start = audio_start
            case Endpoint(speech_end, audio_end):
                assert start is not None
                assert start <= speech_end <= audio_end <= len(probabilities) * FRAME_SAMPLES
                assert audio_end - start <= max_frames * FRAME_SAMPLES
                last_end, start = audio_end, None
    assert start is None
