from __future__ import annotations

import numpy as np
import pytest

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.growing import GrowingAudio
from typeless_grpc.errors import Overloaded


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=["mono", "one channel", "three channels"])
def test_blocks_become_one_array(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    blocks = [random.random((*shape, n_samples), dtype=np.float32) for n_samples in (1, 700, 3, 16_000, 9)]
    whole = GrowingAudio(10**6)
    for block in blocks:
        whole.append(block)
    joined = whole.joined()
    assert joined.dtype == np.float32
    assert np.array_equal(joined, np.concatenate(blocks, axis=-1))


def test_no_blocks_are_no_samples() -> None:
    assert GrowingAudio(10**6).joined().shape == (0,)


@pytest.mark.parametrize(("n_channels", "n_arrays"), [(1, 1), (8, 9)])
def test_memory_is_counted_before_it_is_taken_and_what_is_not_needed_is_given_back(
    n_channels: int, n_arrays: int
) -> None:
    counted: list[float] = []
    whole = GrowingAudio(10**9, counted.append)
    second = np.ones((n_channels, SAMPLE_RATE_HZ) if n_channels > 1 else SAMPLE_RATE_HZ, dtype=np.float32)
    for n_seconds in range(1, 30):
        whole.append(second)
        assert n_arrays * n_seconds <= counted[-1] <= n_arrays * 1.25 * n_seconds
    whole.joined()
    assert counted[-1] == n_channels * 29


def test_room_to_grow_is_done_without_where_it_is_refused() -> None:
    def reserve(audio_s: float) -> None:
        if audio_s > 30.0:
            raise Overloaded("full")

    whole = GrowingAudio(10**9, reserve)
    for _ in range(30):
        whole.append(np.ones(SAMPLE_RATE_HZ, dtype=np.float32))
    with pytest.raises(Overloaded):
        whole.append(np.ones(1, dtype=np.float32))
    assert len(whole.joined()) == 30 * SAMPLE_RATE_HZ
