"""Recordings cut into chunks: every sample once, cuts at pauses, and the same cuts from any chunk on."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.audio.decode import DecodeCancelled, DecodeLimits
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat, Encoding
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.audio.vad import FRAME_SAMPLES, DetectorState, Probabilities
from typeless_grpc.errors import InvalidInput
from typeless_grpc.jobs.chunks import AudioChunk, ChunkReader, bounds_s

PCM = AudioFormat(Encoding.PCM_S16LE, SAMPLE_RATE_HZ, 1)
LIMITS = DecodeLimits(max_duration_s=3600.0)


class GradedDetector(LoudnessDetector):
    """The louder a frame, the more probable it is speech."""

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        available = np.concatenate([state.pending, audio])
        n_whole = len(available) - len(available) % FRAME_SAMPLES
        state.pending = available[n_whole:]
        peaks = np.abs(available[:n_whole].reshape(-1, FRAME_SAMPLES)).max(axis=1)
        return np.asarray(np.minimum(1.0, 10 * peaks), dtype=np.float32)


def samples(n_samples: int, *pauses: tuple[float, float]) -> np.ndarray:
    """A counter as loud samples, silent in the pauses (seconds)."""
    audio = (np.arange(n_samples) % 10_000 + 10_000).astype("<i2")
    audio[1::2] *= -1  # sound, and no offset
    for begin_s, end_s in pauses:
        audio[int(begin_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)] = 0
    return audio


def reader(audio: np.ndarray, *, position: int = 0, shortest_s: float = 4.0) -> ChunkReader:
    file = io.BytesIO(audio.tobytes())
    return ChunkReader(
        file, PCM, LIMITS, GradedDetector(), position=position, shortest_s=shortest_s, cancelled=lambda: False
    )


def chunks(audio: np.ndarray, **options: float) -> list[AudioChunk]:
    cutting = reader(audio, **options)  # type: ignore[arg-type]
    found = [cutting.chunk(0)]
    while not found[-1].is_last:
        found.append(cutting.chunk(len(found)))
    return found


@given(st.integers(1, 40 * SAMPLE_RATE_HZ))
def test_every_sample_is_in_one_chunk(n_samples: int):
    audio = samples(n_samples)
    found = chunks(audio)
    assert np.array_equal(np.concatenate([chunk.samples for chunk in found]), audio.astype(np.float32) / 32768)
    assert found[0].start == 0
    assert found[-1].end == n_samples
    for chunk in found:
        assert chunk.end - chunk.start == len(chunk.samples)
    for before, after in pairwise(found):
        assert before.end == after.start
    for index, chunk in enumerate(found[:-1]):
        at_least_s, at_most_s = bounds_s(index, 4.0)
        assert at_least_s <= len(chunk.samples) / SAMPLE_RATE_HZ <= at_most_s
    assert len(found[-1].samples) / SAMPLE_RATE_HZ <= bounds_s(len(found) - 1, 4.0)[1]


def test_the_first_chunks_are_shorter():
    assert [bounds_s(index, 60.0) for index in range(4)] == [(15, 30), (30, 60), (60, 120), (60, 120)]


def test_chunks_are_cut_in_the_middle_of_the_longest_pause():
    first = chunks(samples(30 * SAMPLE_RATE_HZ, (1.2, 1.3), (1.5, 1.9)))[0]
    assert first.end / SAMPLE_RATE_HZ == pytest.approx(1.7, abs=FRAME_SAMPLES / SAMPLE_RATE_HZ)


def test_without_a_pause_the_cut_is_where_it_is_quietest():
    audio = samples(30 * SAMPLE_RATE_HZ)
    audio[24_000:25_600] = 1500  # too loud for silence, too faint for much
    first = chunks(audio)[0]
    assert first.end / SAMPLE_RATE_HZ == pytest.approx(1.55, abs=0.07)


def test_a_reader_that_begins_at_any_chunk_makes_the_same_cuts():
    audio = samples(40 * SAMPLE_RATE_HZ, (1.5, 1.6), (5.2, 5.4), (11.0, 11.5), (18.1, 18.3))
    whole = chunks(audio)
    assert len(whole) > 4
    for index, chunk in enumerate(whole):
        again = reader(audio, position=chunk.start).chunk(index)
        assert (again.start, again.end, again.is_last) == (chunk.start, chunk.end, chunk.is_last)
        assert np.array_equal(again.samples, chunk.samples)


def test_progress_grows_to_one():
    progress = [chunk.progress for chunk in chunks(samples(40 * SAMPLE_RATE_HZ))]
    assert progress == sorted(progress)
    assert 0 < progress[0] < 0.2
    assert progress[-1] == 1.0
    assert all(value < 1.0 for value in progress[:-1])


def test_progress_is_that_of_the_audio():
    for chunk in chunks(samples(40 * SAMPLE_RATE_HZ)):
        assert chunk.progress == pytest.approx(chunk.end / (40 * SAMPLE_RATE_HZ), abs=0.05)


def test_a_recording_that_has_become_shorter_is_refused():
    shorter = reader(samples(SAMPLE_RATE_HZ), position=2 * SAMPLE_RATE_HZ)
    with pytest.raises(InvalidInput) as caught:
        shorter.chunk(1)
    assert caught.value.reason == "AUDIO_TRUNCATED"


def test_nobody_waits_for_a_recording_that_is_no_longer_wanted():
    file = io.BytesIO(samples(30 * SAMPLE_RATE_HZ).tobytes())
    cancelled = ChunkReader(file, PCM, LIMITS, GradedDetector(), cancelled=lambda: True)
    with pytest.raises(DecodeCancelled):
        cancelled.chunk(0)


def test_the_memory_of_a_reader_does_not_grow_with_the_recording():
    cutting = reader(samples(120 * SAMPLE_RATE_HZ))
    for index in range(8):
        cutting.chunk(index)
        assert cutting.n_waiting <= (8.0 + 1.0) * SAMPLE_RATE_HZ  # a chunk, and what a block brought too much
