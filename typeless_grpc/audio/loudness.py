"""A voice activity detector without a model, for tests: loud audio is speech."""

from __future__ import annotations

import numpy as np

from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.vad import FRAME_SAMPLES, DetectorState, Probabilities


class LoudnessDetector:
    """Returns the probability 1 for a frame whose root mean square is at least `threshold`, else 0."""

    def __init__(self, threshold: float = 0.02) -> None:
        self._threshold = threshold

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        """See `VoiceActivityDetector`."""
        waiting = np.concatenate([state.pending, audio])
        n_whole = len(waiting) - len(waiting) % FRAME_SAMPLES
        state.pending = waiting[n_whole:].copy()
        frames = waiting[:n_whole].reshape(-1, FRAME_SAMPLES)
        loudness = np.sqrt((frames**2).mean(axis=1))
        return np.asarray(loudness >= self._threshold, dtype=np.float32)

    def finish(self, state: DetectorState) -> Probabilities:
        """See `VoiceActivityDetector`."""
        if not len(state.pending):
            return np.zeros(0, dtype=np.float32)
        return self.probabilities(np.zeros(FRAME_SAMPLES - len(state.pending), dtype=np.float32), state)
