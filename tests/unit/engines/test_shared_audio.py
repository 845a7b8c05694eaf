"""Memory that a front shares with an engine process: regions, and what the process cannot do."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engines.shared_audio import Region, SharedAudio, SharedAudioReader

PAGE = 1024  # samples
N_PAGES = 4


@pytest.fixture
def shared() -> Iterator[SharedAudio]:
    memory = SharedAudio(N_PAGES * PAGE * 4)
    yield memory
    memory.close()


@pytest.fixture
def reader(shared: SharedAudio) -> SharedAudioReader:
    return SharedAudioReader(os.dup(shared.descriptor))


def noise(n_samples: int) -> Audio:
    return np.random.default_rng(n_samples).normal(0, 0.2, n_samples).astype(np.float32)


def test_the_process_reads_what_the_front_puts(shared: SharedAudio, reader: SharedAudioReader):
    first, second = noise(PAGE + 1), noise(7)
    regions = shared.put(first), shared.put(second)
    assert regions == (Region(0, 2 * PAGE), Region(2 * PAGE, 3 * PAGE))
    for audio, region in zip((first, second), regions, strict=True):
        assert region is not None
        found = reader.read(region.start, len(audio))
        assert found is not None
        np.testing.assert_array_equal(found, audio)


def test_regions_are_used_again_and_never_shared(shared: SharedAudio):
    taken = [shared.put(noise(PAGE)) for _ in range(N_PAGES)]
    assert shared.put(noise(1)) is None
    assert taken[1] is not None
    assert taken[2] is not None
    shared.free(taken[1])
    shared.free(taken[2])
    assert shared.put(noise(2 * PAGE + 1)) is None
    assert shared.put(noise(2 * PAGE)) == Region(PAGE, 3 * PAGE)
    assert shared.n_used == 3


def test_no_audio_has_a_place_too(shared: SharedAudio, reader: SharedAudioReader):
    assert shared.put(noise(0)) == Region(0, PAGE)
    found = reader.read(0, 0)
    assert found is not None
    assert len(found) == 0


def test_samples_outside_of_the_memory_are_refused(reader: SharedAudioReader):
    assert reader.read(0, N_PAGES * PAGE) is not None
    assert reader.read(1, N_PAGES * PAGE) is None
    assert reader.read(N_PAGES * PAGE + 1, 0) is None
    assert reader.read(2**60, 1) is None


def test_the_process_can_neither_resize_nor_change_the_memory(shared: SharedAudio):
    for size in (0, 2**20):
        with pytest.raises(PermissionError):
            os.ftruncate(shared.descriptor, size)
    with pytest.raises(PermissionError):
        mmap.mmap(shared.descriptor, 0)
    with pytest.raises(PermissionError):
        os.write(shared.descriptor, b"no")
    assert shared.put(noise(PAGE)) is not None  # the front still can
