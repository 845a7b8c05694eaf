"""Collects a recording's samples in memory, and reserves the memory first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.errors import Overloaded, RateLimited

# Reserves this many seconds of audio in all, of all channels together. Raises Overloaded or RateLimited.
Reserve = Callable[[float], None]

_GROWTH = 1.25


def unlimited(audio_s: float) -> None:
    """A `Reserve` that permits everything."""


class GrowingAudio:
    """An array for each channel, which grows in place: joining a list of blocks would need the memory twice."""

    def __init__(self, max_samples: int, reserve: Reserve = unlimited) -> None:
        """max_samples: of all channels together; only an estimate of what may come."""
        self._max_samples, self._reserve = max_samples, reserve
        self._channels: list[Audio] = []
        self._n_samples = 0
        self._is_mono = True

    def append(self, block: Audio) -> None:
        """Add a block. block: shape (n_samples,) or (n_channels, n_samples). Raises what `reserve` raises."""
        rows = np.atleast_2d(block)
        if not self._channels:
            self._is_mono = block.ndim == 1
            self._channels = [np.zeros(0, dtype=np.float32) for _ in rows]
        n_needed = self._n_samples + rows.shape[1]
        if n_needed > len(self._channels[0]):
            self._grow(n_needed)
        for channel, row in zip(self._channels, rows, strict=True):
            channel[self._n_samples : n_needed] = row
        self._n_samples = n_needed

    def joined(self) -> Audio:
        """Return all blocks as one array. Nothing may be appended after it."""
        n_samples, n_channels = self._n_samples, len(self._channels)
        for channel in self._channels:
            channel.resize(n_samples, refcheck=False)
        samples = self._channels.pop(0) if n_channels else np.zeros(0, dtype=np.float32)
        for index in range(1, n_channels):  # there is never a second copy of more than one channel
            samples.resize((index + 1) * n_samples, refcheck=False)
            samples[index * n_samples :] = self._channels.pop(0)
        if not self._is_mono:
            samples = samples.reshape(n_channels, n_samples)
        self._reserve(samples.size / SAMPLE_RATE_HZ)
        return samples

    def clear(self) -> None:
        """Free all memory."""
        self._channels.clear()

    def _grow(self, n_needed: int) -> None:
        n_roomy = min(int(_GROWTH * len(self._channels[0])), self._max_samples // len(self._channels))
        n_samples = max(n_needed, n_roomy)
        try:
            self._count(n_samples)
        except (Overloaded, RateLimited):
            if n_samples == n_needed:
                raise
            self._count(n_samples := n_needed)
        for channel in self._channels:
            channel.resize(n_samples, refcheck=False)

    def _count(self, n_samples: int) -> None:
        n_arrays = len(self._channels) + (not self._is_mono)  # `joined` needs one more
        self._reserve(n_arrays * n_samples / SAMPLE_RATE_HZ)
