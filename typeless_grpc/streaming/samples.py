"""The audio of a stream that may still be needed, and no more."""

from __future__ import annotations

from collections import deque

import numpy as np

from typeless_grpc.audio.formats import Audio


class SampleBuffer:
    """A window over the stream that is appended to at one end and forgotten at the other."""

    def __init__(self) -> None:
        self._blocks: deque[Audio] = deque()
        self._start = 0
        self.end = 0

    @property
    def n_held(self) -> int:
        """Samples that are here."""
        return self.end - self._start

    def append(self, block: Audio) -> None:
        """Add what follows."""
        self._blocks.append(block)
        self.end += len(block)

    def forget(self, before: int) -> None:
        """Let go of whole blocks before a sample."""
        while self._blocks and self._start + len(self._blocks[0]) <= before:
            self._start += len(self._blocks.popleft())

    def clear(self) -> None:
        """Let go of everything."""
        self.forget(self.end)

    def cut(self, start: int, end: int) -> Audio:
        """The samples from start to end, exclusive; all of them must be here."""
        assert self._start <= start <= end <= self.end, f"{start} to {end} of {self._start} to {self.end}"
        parts, at = [], self._start
        for block in self._blocks:
            if at >= end:
                break
            if at + len(block) > start:
                parts.append(block[max(0, start - at) : end - at])
            at += len(block)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
