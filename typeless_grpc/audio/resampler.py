"""Resamples from any rate to 16 kHz, block by block."""

from __future__ import annotations

import av
import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio


class Resampler:
    """Resamples one recording or stream to 16 kHz, each channel on its own.

    libswresample with its default filter (Kaiser window, 32 taps at the lower rate): flat to 7 kHz, -26 dB at 8.5 kHz,
    under -60 dB from 9 kHz. Its output is bit for bit the same however the input is cut into blocks.
    """

    def __init__(self, rate_hz: int, n_channels: int = 1) -> None:
        self.rate_hz = rate_hz
        self.n_channels = n_channels
        self._channels = [
            # "flt" and "mono" on both sides: libswresample neither mixes nor chooses a layout.
            av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            for _ in range(n_channels if rate_hz != SAMPLE_RATE_HZ else 0)
        ]

    def feed(self, samples: Audio) -> Audio:
        """Return the 16 kHz audio that is ready now; the filter keeps a few milliseconds back.

        samples: shape (n_channels, n_samples) at rate_hz; so is what comes back, at 16 kHz and clipped to [-1, 1].
        """
        if not self._channels or samples.shape[1] == 0:
            return np.clip(samples, -1.0, 1.0)
        return self._through([_frame(channel, self.rate_hz) for channel in samples])

    def flush(self) -> Audio:
        """Return the rest. Nothing may be fed after it."""
        return self._through([None] * len(self._channels))

    def _through(self, frames: list[av.AudioFrame] | list[None]) -> Audio:
        if not frames:
            return np.zeros((self.n_channels, 0), dtype=np.float32)
        rows = []
        for resampler, frame in zip(self._channels, frames, strict=True):
            parts = [np.frombuffer(bytes(out.planes[0]), np.float32, out.samples) for out in resampler.resample(frame)]
            rows.append(np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32))
        resampled: Audio = np.clip(np.stack(rows), -1.0, 1.0)
        return resampled


def _frame(samples: Audio, rate_hz: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="flt", layout="mono", samples=samples.shape[0])
    frame.planes[0].update(samples.astype(np.float32, copy=False).tobytes())
    frame.sample_rate = rate_hz
    return frame
