from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.planning.cuts import CutPolicy, cut

# Costs and risks of the tests' own: what is best by measurement changes, what a plan must keep does not.
POLICY = CutPolicy(
    fixed_cost=0.5,
    cost_per_s2=0.002,
    longest_s=24.0,
    shortest_s=8.0,
    short_risk=0.1,
    cut_risk=0.3,
    padding_s=0.3,
    context_s=0.3,
    pause_s=1.5,
    silence_s=3.0,
)


def samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)


def speech(*parts_s: float) -> tuple[list[Span], int]:
    """Spans from alternating seconds of pause and speech, and the length of the recording in samples."""
    edges = list(itertools.accumulate(samples(part_s) for part_s in parts_s))
    spans = [Span(start, end) for start, end in itertools.pairwise(edges)][::2]
    return spans, edges[-1]


def seconds(chunk: Chunk) -> tuple[float, float]:
    return round(chunk.start / SAMPLE_RATE_HZ, 2), round(chunk.end / SAMPLE_RATE_HZ, 2)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Speech and pauses in turn, of any lengths, and perhaps silence at the end."""
    pauses = st.integers(1, samples(8.0))
    lengths = st.integers(1, samples(60.0)) | st.integers(1, samples(4.0))
    spans, end = [], 0
    for _ in range(draw(st.integers(0, 25))):
        start = end + draw(pauses) if spans else draw(st.integers(0, samples(8.0)))
        end = start + draw(lengths)
        spans.append(Span(start, end))
    return spans, end + draw(st.integers(0, samples(5.0)))


POLICIES = st.builds(
    replace,
    st.just(POLICY),
    longest_s=st.floats(1.0, 30.0),
    padding_s=st.floats(0.0, 40.0),
    silence_s=st.floats(0.01, 40.0),
    pause_s=st.floats(0.1, 40.0),
)


@given(recordings(), POLICIES)
def test_chunks_hold_all_speech_once_in_order_and_fit_the_encoder(recording: tuple[list[Span], int], policy: CutPolicy):
    spans, n_samples = recording
    chunks = cut(spans, n_samples, policy)
    covered = [span for chunk in chunks for span in chunk.speech]
    for before, after in itertools.pairwise(chunks):
        assert before.end <= after.start
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= n_samples
        assert chunk.window_s <= policy.longest_s + 1e-9
        assert chunk.speech
        assert all(chunk.start <= span.start < span.end <= chunk.end for span in chunk.speech)
        assert [span.end - span.start for span in chunk.window_speech()] == [
            span.end - span.start for span in chunk.speech
        ]
    assert sum(span.end - span.start for span in covered) == sum(span.end - span.start for span in spans)
    assert all(before.end <= after.start for before, after in itertools.pairwise(covered))
    assert {span.start for span in spans} <= {span.start for span in covered}
    assert {span.end for span in spans} <= {span.end for span in covered}


@given(recordings(), POLICIES)
def test_the_same_recording_is_always_cut_the_same_way(recording: tuple[list[Span], int], policy: CutPolicy):
    spans, n_samples = recording
    assert cut(spans, n_samples, policy) == cut(tuple(spans), n_samples, policy)


@given(recordings())
def test_no_chunk_holds_a_long_silence(recording: tuple[list[Span], int]):
    spans, n_samples = recording
    for chunk in cut(spans, n_samples, POLICY):
        for before, after in itertools.pairwise(chunk.speech):
            assert after.start - before.end <= samples(POLICY.silence_s)


def test_silence_has_no_chunks():
    assert cut([], samples(60.0), POLICY) == []


def test_one_utterance_is_one_chunk_with_its_padding():
    spans, n_samples = speech(2.0, 5.0, 2.0)
    (chunk,) = cut(spans, n_samples, POLICY)
    assert seconds(chunk) == (1.7, 7.3)
    assert chunk.speech == tuple(spans)
    assert chunk.window_s == pytest.approx(5.6)


def test_padding_ends_with_the_recording():
    spans, n_samples = speech(0.1, 5.0, 0.1)
    (chunk,) = cut(spans, n_samples, POLICY)
    assert (chunk.start, chunk.end) == (0, n_samples)


@pytest.mark.parametrize(
    ("before_s", "after_s", "expected"),
    [
        pytest.param(3.0, 3.0, (1.8, 9.2), id="as much as helps"),
        pytest.param(0.5, 0.2, (0.0, 5.7), id="as much as the recording has"),
    ],
)
def test_context_is_kept_where_the_recording_has_it(before_s: float, after_s: float, expected: tuple[float, float]):
    spans, n_samples = speech(before_s, 5.0, after_s)
    (chunk,) = cut(spans, n_samples, replace(POLICY, context_s=1.2))
    assert seconds(chunk) == expected


def test_context_takes_only_the_room_that_a_window_has():
    spans, n_samples = speech(3.0, 22.6, 3.0)
    (chunk,) = cut(spans, n_samples, replace(POLICY, context_s=1.2))
    assert chunk.window_s == pytest.approx(POLICY.longest_s, abs=0.001)


def test_context_is_shared_with_the_neighbour():
    spans, n_samples = speech(0.0, 15.0, 1.0, 15.0)
    first, second = cut(spans, n_samples, replace(POLICY, context_s=1.2))
    assert first.end == second.start == samples(15.5)


def test_speech_that_fits_into_one_window_is_not_cut():
    spans, n_samples = speech(0.5, 3.0, 1.0, 3.0, 1.0, 3.0, 0.5)
    assert len(cut(spans, n_samples, POLICY)) == 1


def test_the_longer_of_two_pauses_is_cut():
    spans, n_samples = speech(0.0, 10.0, 0.2, 6.0, 1.2, 10.0)
    first, second = cut(spans, n_samples, POLICY)
    assert (len(first.speech), len(second.speech)) == (2, 1)
    spans, n_samples = speech(0.0, 10.0, 1.2, 6.0, 0.2, 10.0)
    first, second = cut(spans, n_samples, POLICY)
    assert (len(first.speech), len(second.speech)) == (1, 2)


def test_chunks_meet_in_the_middle_of_a_short_pause():
    spans, n_samples = speech(0.0, 20.0, 0.2, 20.0)
    first, second = cut(spans, n_samples, POLICY)
    assert first.end == second.start == samples(20.1)


def test_speech_without_a_pause_is_cut_evenly():
    spans, n_samples = speech(0.0, 60.0)
    chunks = cut(spans, n_samples, POLICY)
    assert len(chunks) == 3
    assert max(chunk.window_s for chunk in chunks) - min(chunk.window_s for chunk in chunks) <= 2 * POLICY.padding_s
    for before, after in itertools.pairwise(chunks):
        assert before.end == after.start  # nothing between them is lost


@pytest.mark.parametrize("padding_s", [0.0, 0.3, 7.5, 12.0, 15.0, 30.0])
def test_padding_never_takes_the_room_of_speech(padding_s: float):
    spans, n_samples = speech(20.0, 60.0, 20.0)
    policy = replace(POLICY, padding_s=padding_s)
    chunks = cut(spans, n_samples, policy)
    assert max(chunk.window_s for chunk in chunks) <= policy.longest_s
    assert sum(span.end - span.start for chunk in chunks for span in chunk.speech) == samples(60.0)


def test_a_short_leftover_is_avoided_where_a_better_cut_exists():
    spans, n_samples = speech(0.0, 11.0, 0.5, 11.0, 0.5, 2.0)
    chunks = cut(spans, n_samples, POLICY)
    assert [len(chunk.speech) for chunk in chunks] == [1, 2]


def test_ten_hours_of_speech_are_planned_in_seconds():
    parts_s = [0.3, 1.7] * 18_000
    spans, n_samples = speech(*parts_s)
    began_s = time.process_time()
    chunks = cut(spans, n_samples, POLICY)
    assert time.process_time() - began_s < 10.0
    assert sum(len(chunk.speech) for chunk in chunks) == len(spans)


def test_a_long_pause_inside_a_chunk_is_shortened():
    spans, n_samples = speech(1.0, 4.0, 2.5, 4.0, 1.0)
    (chunk,) = cut(spans, n_samples, POLICY)
    recording = np.arange(n_samples, dtype=np.float32)
    shown = chunk.window_audio(recording)
    assert len(shown) / SAMPLE_RATE_HZ == chunk.window_s == pytest.approx(0.3 + 4.0 + 1.5 + 4.0 + 0.3)
    for original, moved in zip(chunk.speech, chunk.window_speech(), strict=True):
        assert np.array_equal(shown[moved.start : moved.end], recording[original.start : original.end])


@given(recordings(), POLICIES)
def test_times_in_the_window_convert_to_times_in_the_recording(recording: tuple[list[Span], int], policy: CutPolicy):
    spans, n_samples = recording
    for chunk in cut(spans, n_samples, policy):
        for original, moved in zip(chunk.speech, chunk.window_speech(), strict=True):
            middle_s = (moved.start + moved.end) / 2 / SAMPLE_RATE_HZ
            assert chunk.recording_s(middle_s) == pytest.approx((original.start + original.end) / 2 / SAMPLE_RATE_HZ)
        times_s = [chunk.recording_s(chunk.window_s * part / 20) for part in range(-1, 23)]
        assert times_s == sorted(times_s)
        assert chunk.start / SAMPLE_RATE_HZ <= times_s[0]
        assert times_s[-1] <= chunk.end / SAMPLE_RATE_HZ
