"""Cuts a recording of any length into chunks of about one to two minutes, at pauses, while it is decoded.

It holds one chunk in memory, however long the recording. The first chunks are shorter, so that the first text and the
first progress come soon. Where a chunk ends depends on the audio alone, and a reader can begin at the end of any chunk.
So a job that stopped continues there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from typeless_grpc.audio.decode import AudioReader, DecodeLimits, OpenReader, reader_of, recognized_format
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.vad import FRAME_SAMPLES, VoiceActivityDetector, recording_probabilities
from typeless_grpc.errors import InvalidInput

# Silero's threshold of 0.5 less its hysteresis of 0.15: a frame below it is silence.
_SILENCE = 0.35
# The detector gets about 10 s at a time, because its memory grows with the audio of one call.
_STEP_SAMPLES = 320 * FRAME_SAMPLES
# Without a pause, the cut is where this many frames (about 0.1 s) have the lowest probability of speech.
_SMOOTH_FRAMES = 3
_REGULAR_INDEX = 2  # index of the first chunk of full length


@dataclass(frozen=True)
class AudioChunk:
    """Samples [start, end) of a recording.

    samples: shape (n_samples,), or (n_channels, n_samples) for separate channels. progress: the share of the recording
    before end, in [0, 1].
    """

    samples: Audio
    start: int
    end: int
    is_last: bool
    progress: float


def bounds_s(index: int, shortest_s: float) -> tuple[float, float]:
    """Return the minimum and maximum length of a chunk: shortest_s and twice that, less for the first two chunks."""
    at_least_s = shortest_s * min(1.0, 2.0 ** (index - _REGULAR_INDEX))
    return at_least_s, 2 * at_least_s


class ChunkReader:
    """Reads one recording chunk by chunk, from the start or from the end of any chunk."""

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
        open_container: OpenReader = AudioReader,
    ) -> None:
        """file: seekable; the caller closes it. position: the end of the previous chunk, in samples at 16 kHz.

        open_container: makes the reader of what FFmpeg has to decode.

        Raises, here and while reading, what `audio.decode` raises.
        """
        self._detector, self._shortest_s = detector, shortest_s
        self._n_bytes = file.seek(0, io.SEEK_END)
        format = recognized_format(file, format)
        make = reader_of(format, open_container)
        self._reader = reader = make(file, format, limits, cancelled=cancelled, separate_channels=separate_channels)
        # A container may not say how many channels it has.
        self._n_channels = (reader.source.n_channels or limits.max_channels) if separate_channels else 1
        self._blocks: Iterator[Audio] = reader.blocks()
        self._waiting: list[Audio] = []
        self._n_waiting = self._n_decoded = 0
        self._start = position
        self._has_ended = False

    def close(self) -> None:
        """Stop decoding; the file stays open."""
        self._reader.close()

    @property
    def most_held_s(self) -> float:
        """The most audio in memory at once, of all channels: two copies of a chunk, while it is joined."""
        return 2 * bounds_s(_REGULAR_INDEX, self._shortest_s)[1] * self._n_channels

    @property
    def n_waiting(self) -> int:
        """Samples that are decoded and belong to the chunks to come."""
        return self._n_waiting

    def chunk(self, index: int) -> AudioChunk:
        """Return the next chunk. index: its position in the recording. Do not call it after the last one."""
        at_least_s, at_most_s = bounds_s(index, self._shortest_s)
        at_most = int(at_most_s * SAMPLE_RATE_HZ)
        self._fill(at_most + 1)
        samples = np.concatenate(self._waiting, axis=-1) if self._waiting else np.zeros(0, dtype=np.float32)
        if self._has_ended and samples.shape[-1] <= at_most:
            if not samples.size:
                why = "it is shorter now than when the earlier part of it was transcribed"
                raise InvalidInput("audio.uri", why, reason="AUDIO_TRUNCATED")
            return self._taken(samples, samples.shape[-1])
        at_least = int(at_least_s * SAMPLE_RATE_HZ)
        region = samples[..., at_least:at_most]
        return self._taken(samples, at_least + self._pause(region if region.ndim == 1 else region.mean(axis=0)))

    def _fill(self, n_samples: int) -> None:
        """Decode until n_samples wait, or the audio ends."""
        while self._n_waiting < n_samples and not self._has_ended:
            block = next(self._blocks, None)
            if block is None:
                self._has_ended = True
                return
            before, self._n_decoded = self._n_decoded, self._n_decoded + block.shape[-1]
            if self._n_decoded <= self._start:
                continue  # it belongs to a chunk that is done
            block = block[..., max(0, self._start - before) :]
            self._waiting.append(block)
            self._n_waiting += block.shape[-1]

    def _pause(self, region: Audio) -> int:
        """Return the sample of region to cut at: the middle of the longest pause, or else the quietest place."""
        steps = range(0, region.shape[-1], _STEP_SAMPLES)
        probabilities = np.concatenate(
            [recording_probabilities(self._detector, region[i : i + _STEP_SAMPLES]) for i in steps]
        )
        silent = np.concatenate([[False], probabilities < _SILENCE, [False]])
        edges = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2)  # start and end of each pause
        if len(edges):
            begin, end = edges[np.argmax(edges[:, 1] - edges[:, 0])]
            frame = (int(begin) + int(end)) // 2
        else:
            frame = int(np.argmin(np.convolve(probabilities, np.ones(_SMOOTH_FRAMES), mode="same")))
        return min(frame * FRAME_SAMPLES, len(region))

    def _taken(self, samples: Audio, n_samples: int) -> AudioChunk:
        rest = samples[..., n_samples:]
        self._waiting, self._n_waiting = ([rest.copy()] if rest.size else []), rest.shape[-1]
        start, self._start = self._start, self._start + n_samples
        is_last = self._has_ended and not rest.size
        progress = 1.0 if is_last else min(1.0, self._start / self._n_expected())
        return AudioChunk(samples[..., :n_samples], start, self._start, is_last, progress)

    def _n_expected(self) -> float:
        """Estimate the samples of the whole recording from its bytes and what those read so far gave."""
        if self._has_ended:
            return self._n_decoded
        n_read = min(max(1, self._reader.position), self._n_bytes)
        return max(self._n_decoded, self._n_decoded * self._n_bytes / n_read)
