from __future__ import annotations

import numpy as np

from typeless_grpc.audio.converter import Converter


def test_channels_that_are_kept_apart_stay_in_step_whatever_is_done_to_their_levels():
    time_s = np.arange(8 * 16_000) / 16_000
    loud = (0.5 * np.sin(2 * np.pi * 300 * time_s)).astype(np.float32)
    faint = (1e-4 * loud * (np.sin(2 * np.pi * 2 * time_s) > 0)).astype(np.float32)
    both = np.stack([loud, faint])
    converter = Converter(separate_channels=True)
    parts = [converter.feed(both[:, start : start + 4_000], 16_000) for start in range(0, both.shape[1], 4_000)]
    whole = np.concatenate([*parts, converter.flush()], axis=1)
    assert whole.shape == both.shape
    assert np.array_equal(whole[0], loud)
