"""Corrects samples that are far out of range, or too faint for the voice activity model."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio

LOOKAHEAD_S = 3.0  # of recordings; live audio is leveled without lookahead

_FULL_SCALES = (1.0, float(1 << 15), float(1 << 23), float(1 << 31))  # of floats, and of integers written as floats
_HEADROOM = 1.5  # above full scale: loud, and clipped
_MIN_OVER, _MIN_OVER_SHARE = 64, 0.25  # samples above full scale: a mix that is too loud has fewer

_HOP_SAMPLES = SAMPLE_RATE_HZ // 10
_FAINT = 10 ** (-56 / 20)  # Silero finds all speech whose peaks are above it, half at -60 dB, and none at -70
_OFFSET = 0.02  # a constant one, louder than all else, hides speech from Silero
_TARGET = 0.1
_MAX_GAIN = 10_000.0
_LOUD_HOPS = 3  # this long above faint: no click
_WINDOW_HOPS = 30
_MIN_HOPS = 5
_FLOOR = 1e-14  # power, so that it has a logarithm; the noise of rounding to 16 bits is far above
_SPEECH_RANGE_DB = 12.0  # between loud and quiet tenths of a second; room noise has less
_MIN_TURNS = 3  # changes between loud and quiet


class FullScale:
    """Scales floats with the values of integers to [-1, 1]. The result does not depend on how the input is cut."""

    def __init__(self) -> None:
        self._scale = _FULL_SCALES[0]
        self._n_over = self._n_sounding = self._n_fractions = 0
        self._largest: deque[float] = deque(maxlen=_MIN_OVER)  # the last ones that are not below the scale

    def scaled(self, samples: Audio | npt.NDArray[np.float64]) -> Audio | None:
        """Return the samples in [-1, 1]; None if they are too large for any format.

        samples: finite, in order, any number. Samples that are a little too loud are clipped, as are the few before the
        scale is known.
        """
        done: list[Audio] = []
        while len(samples):
            size = np.abs(samples)
            over = self._n_over + np.cumsum(size > self._scale)
            sounding = self._n_sounding + np.cumsum(size > 0)
            fractions = self._n_fractions + np.cumsum(size != np.floor(size))
            if self._scale == 1.0:
                found = (over >= _MIN_OVER) & (over > _MIN_OVER_SHARE * sounding)
                found |= (sounding >= _MIN_OVER) & (fractions == 0)
            else:  # integers have no headroom: a few larger ones show that they have more bits
                found = over >= _MIN_OVER
            n_before = int(found.argmax()) + 1 if found.any() else len(samples)
            now = samples[:n_before] / samples.dtype.type(self._scale)
            done.append(np.clip(now, -1.0, 1.0).astype(np.float32, copy=False))
            self._n_over, self._n_sounding = int(over[n_before - 1]), int(sounding[n_before - 1])
            self._n_fractions = int(fractions[n_before - 1])
            large = size[:n_before][size[:n_before] >= self._scale]
            self._largest.extend(large[-_MIN_OVER:].tolist())
            if found.any():
                usual = float(np.median(self._largest))
                self._largest.clear()
                larger = [one for one in _FULL_SCALES if one > self._scale and usual <= one * _HEADROOM]
                if not larger:
                    return None
                self._scale, self._n_over, self._n_sounding = larger[0], 0, 0
            samples = samples[n_before:]
        return _joined(done)


class Leveler:
    """Raises one channel at 16 kHz if it is too faint for the voice activity model and resembles speech.

    It also removes a constant offset that is louder than the speech. Audio that is loud enough and has no such offset
    passes unchanged, and so does everything after it.
    """

    def __init__(self, *, lookahead_s: float = 0.0) -> None:
        self._n_ahead = round(lookahead_s * SAMPLE_RATE_HZ)
        self._ahead: deque[Audio] = deque()
        self._n_held = 0
        self._hop: list[Audio] = []
        self._n_hop = 0
        self._powers: deque[float] = deque(maxlen=_WINDOW_HOPS)
        self._n_loud = 0
        self._peak = 0.0
        self._n_hops, self._offset, self._is_offset = 0, 0.0, False
        self._gain = 1.0

    def feed(self, samples: Audio) -> Audio:
        """Return the samples that are ready now. samples: shape (n_samples,)."""
        if self._is_settled:
            return _joined([self._released(self._whole_hop(), all=True), self._released(samples, all=True)])
        done = []
        at = 0
        while at < len(samples):
            part = samples[at : at + _HOP_SAMPLES - self._n_hop]
            at += len(part)
            self._hop.append(part)
            self._n_hop += len(part)
            if self._n_ahead == 0:
                done.append(self._raised(part))
            if self._n_hop == _HOP_SAMPLES:
                self._analyze()
                done.append(self._released(self._whole_hop()))
        return _joined(done)

    def flush(self) -> Audio:
        """Return the rest. Nothing may be fed after it."""
        if self._n_hop and not self._is_settled:
            self._analyze()
        if _MIN_HOPS <= self._n_hops < _WINDOW_HOPS:
            self._detect_offset()
        return self._released(self._whole_hop(), all=True)

    @property
    def _is_settled(self) -> bool:
        """Whether later audio cannot change the result any more."""
        return self._n_loud >= _LOUD_HOPS and (abs(self._offset) <= _OFFSET or self._n_hops >= _WINDOW_HOPS)

    def _whole_hop(self) -> Audio:
        hop = np.concatenate(self._hop) if self._hop else np.zeros(0, dtype=np.float32)
        self._hop, self._n_hop = [], 0
        return hop if self._n_ahead else hop[:0]

    def _analyze(self) -> None:
        """Take the level of one complete hop into account, and raise the gain if it shows quiet speech."""
        hop = np.concatenate(self._hop)
        self._n_hops += 1
        self._offset += (float(hop.mean()) - self._offset) / self._n_hops
        hop = hop - hop.mean()
        peak = float(np.abs(hop).max())
        self._n_loud += peak > _FAINT
        if peak <= _FAINT or self._n_loud > 1:  # otherwise it may be a click
            self._peak = max(self._peak, peak)
        if self._n_hops == _WINDOW_HOPS:
            self._detect_offset()
        if self._n_loud >= _LOUD_HOPS:
            self._gain = 1.0
            return
        if hop.any():  # a noise gate leaves zeros between words, which do not show the level of the noise
            self._powers.append(float((hop.astype(np.float64) ** 2).mean()))
        if self._gain > 1.0 or self._is_like_speech():
            self._gain = min(_MAX_GAIN, _TARGET / self._peak)

    def _detect_offset(self) -> None:
        self._is_offset = abs(self._offset) > max(_OFFSET, 2 * self._peak)

    def _is_like_speech(self) -> bool:
        if len(self._powers) < _MIN_HOPS:
            return False
        level_db = 10 * np.log10(np.array(self._powers) + _FLOOR)
        quiet, loud = np.sort(level_db)[[len(level_db) // 10, -1 - len(level_db) // 10]]
        turns = np.count_nonzero(np.diff(level_db > (quiet + loud) / 2))
        return bool(loud - quiet > _SPEECH_RANGE_DB and turns >= _MIN_TURNS)

    def _released(self, samples: Audio, *, all: bool = False) -> Audio:
        """Hold samples, and release those that have enough lookahead."""
        self._ahead.append(samples)
        self._n_held += len(samples)
        ready: list[Audio] = []
        while self._ahead and (all or self._is_settled or self._n_held - len(self._ahead[0]) >= self._n_ahead):
            first = self._ahead.popleft()
            self._n_held -= len(first)
            ready.append(self._raised(first))
        return _joined(ready)

    def _raised(self, samples: Audio) -> Audio:
        if self._gain == 1.0 and not self._is_offset:
            return samples
        raised: Audio = np.clip((samples - np.float32(self._offset)) * np.float32(self._gain), -1.0, 1.0)
        return raised


def _joined(parts: list[Audio]) -> Audio:
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
