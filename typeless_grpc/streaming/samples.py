"""The audio of a stream that is still needed, counted against what all streams may hold."""

from __future__ import annotations

from collections import deque

import numpy as np

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.stream_audio import Holding

_SAMPLE_BYTES = 8  # what a sample counts: a float here, and one more in what the engine is given


class SampleBuffer:
    """A window over the stream: samples are appended at its end and dropped at its start.

    held: the audio that the stream holds.
    """

    def __init__(self, held: Holding) -> None:
        self._held = held
        self._blocks: deque[Audio] = deque()
        self._start = 0
        self._n_counted = 0
        self.end = 0

    @property
    def n_held(self) -> int:
        """Samples in the window."""
        return self.end - self._start

    def begin_at(self, sample: int) -> None:
        """Let the window, which is still empty, begin at this sample of the stream."""
        self._start = self.end = sample

    async def append(self, block: Audio) -> None:
        """Append a block, once there is room for it."""
        await self._held.grow(len(block) * _SAMPLE_BYTES)
        self._n_counted += len(block)
        self._blocks.append(block)
        self.end += len(block)

    def forget(self, before: int) -> None:
        """Drop whole blocks before a sample."""
        while self._blocks and self._start + len(self._blocks[0]) <= before:
            self._start += len(self._blocks.popleft())
        if self.n_held < self._n_counted:
            self._held.shrink((self._n_counted - self.n_held) * _SAMPLE_BYTES)
            self._n_counted = self.n_held

    def clear(self) -> None:
        """Drop everything."""
        self.forget(self.end)

    def cut(self, start: int, end: int) -> Audio:
        """Return the samples from start to end, exclusive. All of them must be in the window."""
        assert self._start <= start <= end <= self.end, f"{start} to {end} of {self._start} to {self.end}"
        parts, at = [], self._start
        for block in self._blocks:
            if at >= end:
                break
            if at + len(block) > start:
                parts.append(block[max(0, start - at) : end - at])
            at += len(block)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
