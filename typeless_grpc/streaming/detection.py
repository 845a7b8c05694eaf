"""Runs the voice activity detector over one stream."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import DetectorState, Probabilities
from typeless_grpc.streaming.dependencies import Dependencies

_INLINE_SAMPLES = SAMPLE_RATE_HZ // 4  # detected on the event loop, in under a millisecond; more goes to a thread


class StreamDetector:
    """The detector with the state of one stream."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._state = DetectorState()

    @property
    def state(self) -> DetectorState:
        """A copy of the state; detectors replace its arrays and do not change them."""
        return replace(self._state)

    def restore(self, state: DetectorState) -> None:
        """Continue from this state."""
        self._state = state

    async def probabilities(self, block: Audio) -> list[float]:
        """Return the probability of speech of each frame that block completes."""
        detect = self._dependencies.detector.probabilities
        if len(block) <= _INLINE_SAMPLES:
            return _as_list(detect(block, self._state))
        loop = asyncio.get_running_loop()
        return _as_list(await loop.run_in_executor(self._dependencies.threads, detect, block, self._state))

    def finish(self) -> list[float]:
        """Return the probability of the last frame, filled up with silence; empty if all frames are complete."""
        return _as_list(self._dependencies.detector.finish(self._state))


def _as_list(probabilities: Probabilities) -> list[float]:
    values: list[float] = probabilities.tolist()
    return values
