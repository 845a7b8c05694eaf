"""Converts decoded samples for the engine: mixes them, resamples them to 16 kHz, and levels them."""

from __future__ import annotations

import numpy as np

from typeless_grpc.audio import level, mixing
from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.level import Leveler
from typeless_grpc.audio.mixing import Mixer
from typeless_grpc.audio.resampler import Resampler


class ChannelsChanged(Exception):
    """The number of separate channels changed in the middle of the audio."""


class Converter:
    """Converts one recording or stream. Its rate may change, and so may its channels where they are mixed."""

    def __init__(self, *, separate_channels: bool = False, is_live: bool = False) -> None:
        """separate_channels: return shape (n_channels, n_samples) in place of the mono mix (n_samples,).

        is_live: return samples at once; otherwise hold some seconds, so that later ones can improve them.
        """
        self._separate_channels, self._is_live = separate_channels, is_live
        self._mixer: Mixer | None = None
        self._resampler: Resampler | None = None
        self._levelers: list[Leveler] = []
        self._uneven: list[Audio] = []  # of each channel: samples that the others do not have yet

    def feed(self, samples: Audio, rate_hz: int) -> Audio:
        """Return the audio that is ready. samples: shape (n_channels, n_samples). Raises ChannelsChanged."""
        before = self._switched(samples.shape[0], rate_hz)
        assert self._resampler is not None
        mixed = samples if self._mixer is None else self._mixer.feed(samples)
        after = self._leveled(self._resampler.feed(mixed))
        return after if before is None else np.concatenate([before, after], axis=-1)

    def flush(self) -> Audio:
        """Return the rest. Nothing may be fed after it."""
        rest = self._leveled(self._drained())
        return np.concatenate([rest, self._shaped([leveler.flush() for leveler in self._levelers])], axis=-1)

    def _switched(self, n_channels: int, rate_hz: int) -> Audio | None:
        """Begin, or change to another format, as in a chained file; return the rest of the one before."""
        n_mixed = n_channels if self._separate_channels else 1
        is_same_mix = self._separate_channels or (self._mixer is not None and self._mixer.n_channels == n_channels)
        if self._resampler is not None and self._resampler.rate_hz == rate_hz and is_same_mix:
            if n_mixed != self._resampler.n_channels:
                raise ChannelsChanged
            return None
        before = self._leveled(self._drained()) if self._resampler is not None else None
        if self._levelers and n_mixed != len(self._levelers):
            raise ChannelsChanged
        lookahead_s = 0.0 if self._is_live else level.LOOKAHEAD_S
        self._levelers = self._levelers or [Leveler(lookahead_s=lookahead_s) for _ in range(n_mixed)]
        if not self._separate_channels:
            self._mixer = Mixer(rate_hz, n_channels, lookahead_s=0.0 if self._is_live else mixing.LOOKAHEAD_S)
        self._resampler = Resampler(rate_hz, n_mixed)
        return before

    def _drained(self) -> Audio:
        if self._resampler is None:
            return np.zeros((1, 0), dtype=np.float32)
        parts = [] if self._mixer is None else [self._resampler.feed(self._mixer.flush())]
        return np.concatenate([*parts, self._resampler.flush()], axis=1)

    def _leveled(self, samples: Audio) -> Audio:
        return self._shaped([leveler.feed(row) for leveler, row in zip(self._levelers, samples, strict=False)])

    def _shaped(self, rows: list[Audio]) -> Audio:
        if self._separate_channels:
            return self._stacked(rows)
        return rows[0] if rows else np.zeros(0, dtype=np.float32)

    def _stacked(self, rows: list[Audio]) -> Audio:
        """Return the samples that all channels have: the levelers hold samples for different times."""
        if not rows:
            return np.zeros((1, 0), dtype=np.float32)
        if self._uneven:
            rows = [np.concatenate(pair) for pair in zip(self._uneven, rows, strict=True)]
        n_samples = min(map(len, rows))
        self._uneven = [row[n_samples:] for row in rows]
        return np.stack([row[:n_samples] for row in rows])
