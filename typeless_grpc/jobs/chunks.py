"""A recording of any length as pieces of about one to two minutes, cut at pauses and decoded one after the other.

Memory is that of one piece, however long the recording. The first pieces are shorter, so that the first text and the
first progress come soon. Where a piece ends depends on the audio alone, and a reader can begin at any piece's end, so
that work goes on where it stopped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from typeless_grpc.audio.decode import DecodeLimits, iter_decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.vad import FRAME_SAMPLES, VoiceActivityDetector, recording_probabilities
from typeless_grpc.errors import InvalidInput

# Silero's threshold of 0.5 less its hysteresis of 0.15: below it a frame is silence.
_SILENCE = 0.35
# Speech is looked for in about 10 s at a time, because the model's memory grows with what it is shown at once.
_STEP_SAMPLES = 320 * FRAME_SAMPLES
# What a cut is judged by where there is no pause: the least speech over as many frames (about 0.1 s).
_SMOOTH_FRAMES = 3


@dataclass(frozen=True)
class Piece:
    """Samples [start, end) of a recording; progress: how much of the recording lies before end, in [0, 1].

    samples: shape (n_samples,), or (n_channels, n_samples) where channels are kept apart.
    """

    samples: Audio
    start: int
    end: int
    is_last: bool
    progress: float


def bounds_s(index: int, shortest_s: float) -> tuple[float, float]:
    """Within which length a piece is cut: at least shortest_s and at most twice that; the first two are shorter."""
    at_least_s = shortest_s * min(1.0, 2.0 ** (index - 2))
    return at_least_s, 2 * at_least_s


class ChunkReader:
    """One recording, from one of its pieces on."""

    def __init__(
        self,
        file: BinaryIO,
        format: AudioFormat,
        limits: DecodeLimits,
        detector: VoiceActivityDetector,
        *,
        position: int = 0,
        shortest_s: float = 60.0,
        separate_channels: bool = False,
        cancelled: Callable[[], bool],
    ) -> None:
        """file: can seek; not closed. position: the end of the piece before, in samples at 16 kHz.

        Raises, here and while reading, what `audio.decode` raises.
        """
        self._file, self._detector, self._shortest_s = file, detector, shortest_s
        self._n_bytes = file.seek(0, io.SEEK_END)
        self._blocks: Iterator[Audio] = iter_decode(
            file, format, limits, cancelled=cancelled, separate_channels=separate_channels
        )
        self._waiting: list[Audio] = []
        self._n_waiting = self._n_decoded = 0
        self._start = position
        self._has_ended = False

    def piece(self, index: int) -> Piece:
        """The next piece, which is the index-th of the recording; not to be called after the last."""
        at_least_s, at_most_s = bounds_s(index, self._shortest_s)
        at_most = int(at_most_s * SAMPLE_RATE_HZ)
        self._fill(at_most + 1)
        samples = np.concatenate(self._waiting, axis=-1) if self._waiting else np.zeros(0, dtype=np.float32)
        if self._has_ended and samples.shape[-1] <= at_most:
            if not samples.size:
                why = "it is shorter now than when the earlier part of it was transcribed"
                raise InvalidInput("audio.uri", why, reason="AUDIO_TRUNCATED")
            return self._cut_off(samples, samples.shape[-1])
        at_least = int(at_least_s * SAMPLE_RATE_HZ)
        region = samples[..., at_least:at_most]
        return self._cut_off(samples, at_least + self._pause(region if region.ndim == 1 else region.mean(axis=0)))

    def _fill(self, n_samples: int) -> None:
        """Decode until as many samples wait, or the audio ends."""
        while self._n_waiting < n_samples and not self._has_ended:
            block = next(self._blocks, None)
            if block is None:
                self._has_ended = True
                return
            before, self._n_decoded = self._n_decoded, self._n_decoded + block.shape[-1]
            if self._n_decoded <= self._start:
                continue  # a piece that is done already
            block = block[..., max(0, self._start - before) :]
            self._waiting.append(block)
            self._n_waiting += block.shape[-1]

    def _pause(self, region: Audio) -> int:
        """The sample of region where cutting hurts least: the middle of the longest pause, else the quietest place."""
        steps = range(0, region.shape[-1], _STEP_SAMPLES)
        probabilities = np.concatenate(
            [recording_probabilities(self._detector, region[i : i + _STEP_SAMPLES]) for i in steps]
        )
        silent = np.concatenate([[False], probabilities < _SILENCE, [False]])
        edges = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2)  # where each pause begins and ends
        if len(edges):
            begin, end = edges[np.argmax(edges[:, 1] - edges[:, 0])]
            frame = (int(begin) + int(end)) // 2
        else:
            frame = int(np.argmin(np.convolve(probabilities, np.ones(_SMOOTH_FRAMES), mode="same")))
        return min(frame * FRAME_SAMPLES, len(region))

    def _cut_off(self, samples: Audio, n_samples: int) -> Piece:
        rest = samples[..., n_samples:]
        self._waiting, self._n_waiting = ([rest.copy()] if rest.size else []), rest.shape[-1]
        start, self._start = self._start, self._start + n_samples
        is_last = self._has_ended and not rest.size
        progress = 1.0 if is_last else min(1.0, self._start / self._n_expected())
        return Piece(samples[..., :n_samples], start, self._start, is_last, progress)

    def _n_expected(self) -> float:
        """How many samples the recording has in all, by how many its bytes so far gave."""
        if self._has_ended:
            return self._n_decoded
        n_read = min(max(1, self._file.tell()), self._n_bytes)
        return max(self._n_decoded, self._n_decoded * self._n_bytes / n_read)
