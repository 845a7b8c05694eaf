"""Mixes several channels to one without losing the speech of any.

The mean of all channels is right for nearly every recording: it cannot clip, and drops no speaker. It is wrong if

- channels cancel each other, because one is inverted (a wrong cable): the mixer aligns their signs;
- a channel is a late copy of another, which blurs every word: the mixer leaves the copy out;
- a channel has only hum or noise, loud enough to mask the speech of another: the mixer leaves it out until it changes.

Each decision depends on the tenths of a second around the one that is mixed. Without evidence, the result is exactly
the mean. docs/measurements/signals.md has the measurements of late copies.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.formats import Audio

LOOKAHEAD_S = 2.0  # of recordings; live audio is mixed without lookahead

_HOPS_PER_S = 10
_PAST_HOPS = 20
_FADE_S = 0.01  # from one mix to the next, without a click
_SPEECH_HZ = (300, 3400)  # what telephones carry: enough to understand, and above the hum of the mains
_CANCELS = 0.25  # the mean keeps less than this part of the energy that it has with the signs aligned: 6 dB
_COPY_RATE_HZ = 8_000
_COPY_EVERY_HOPS = 5
_COPY_LAGS_S = (0.002, 1.5)  # two microphones have shorter delays, which blur nothing
_COPY, _NO_COPY = 0.2, 0.1  # whitened correlation: above, a channel is a copy; below, it is no longer one
_EXPLAINS = 0.7  # correlation above which a tenth of a second is mostly the copy
_MAX_COPY_CHANNELS = 4  # with more channels, pairs are not compared
_STEADY_DB, _LIVELY_DB = 4.0, 9.0  # range of loudness: noise and hum have less, speech has more
_COVERS_DB = -20.0  # noise this far below the speech does no harm
_EVENT_DB = 4.0  # louder than usual by this: not only noise
_SILENCE_DB = -100.0

_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Hop:
    """A tenth of a second. gram: products of its channels within the band of speech; level_db: of each channel."""

    gram: _Matrix
    level_db: _Matrix
    coarse: Audio  # at about 8 kHz


@dataclass(frozen=True)
class _Late:
    """A channel repeats another. lag: how much later, in coarse samples."""

    of: int
    lag: int


class Mixer:
    """Mixes one recording or stream to mono. The result does not depend on how the input is cut."""

    def __init__(self, rate_hz: int, n_channels: int, *, lookahead_s: float = 0.0) -> None:
        self.rate_hz, self.n_channels = rate_hz, n_channels
        self._hop_samples = max(1, rate_hz // _HOPS_PER_S)
        self._n_ahead = round(lookahead_s * _HOPS_PER_S)
        self._pending: list[Audio] = []  # less than a hop
        self._n_pending = 0
        self._ahead: deque[Audio] = deque()  # hops that are analyzed, and not mixed yet
        self._hops: deque[_Hop] = deque(maxlen=_PAST_HOPS + self._n_ahead + 1)
        self._weights = self._mean = np.full(n_channels, 1 / n_channels)
        self._signs = np.ones(n_channels)
        self._late: dict[int, _Late] = {}
        step = max(1, rate_hz // _COPY_RATE_HZ)
        self._coarse_hop_samples = self._hop_samples // step
        self._lags = (round(_COPY_LAGS_S[0] * rate_hz / step), round(_COPY_LAGS_S[1] * rate_hz / step))
        self._noises = np.zeros(n_channels, dtype=bool)
        self._n_hops = 0
        self._loudest = 0.0

    def feed(self, samples: Audio) -> Audio:
        """Return the mix that is ready now, shape (1, n_samples). samples: shape (n_channels, n_samples)."""
        if self.n_channels == 1:
            return samples
        return _joined(part for hop in self._cut(samples) for part in self._taken(hop))

    def flush(self) -> Audio:
        """Return the rest. Nothing may be fed after it."""
        rest = np.concatenate(self._pending, axis=1) if self._n_pending else None
        parts = list(self._taken(rest)) if rest is not None else []
        while self._ahead:
            self._hops.append(_nothing(self.n_channels))
            parts.append(self._mixed(self._ahead.popleft()))
        self._pending, self._n_pending = [], 0
        return _joined(iter(parts))

    def _cut(self, samples: Audio) -> Iterator[Audio]:
        at = 0
        while at < samples.shape[1]:
            part = samples[:, at : at + self._hop_samples - self._n_pending]
            at += part.shape[1]
            self._pending.append(part)
            self._n_pending += part.shape[1]
            if self._n_pending == self._hop_samples:
                hop = np.concatenate(self._pending, axis=1) if len(self._pending) > 1 else part
                self._pending, self._n_pending = [], 0
                yield hop

    def _taken(self, hop: Audio) -> Iterator[Audio]:
        self._hops.append(self._analyze(hop))
        self._ahead.append(hop)
        if len(self._ahead) > self._n_ahead:
            yield self._mixed(self._ahead.popleft())

    def _analyze(self, hop: Audio) -> _Hop:
        """Measure a hop: how alike its channels are in the band of speech, how loud each is, and a coarse copy."""
        n_samples = hop.shape[1]
        step = max(1, self.rate_hz // _COPY_RATE_HZ)
        n_coarse = n_samples // step
        coarse = hop[:, : n_coarse * step].reshape(self.n_channels, n_coarse, step).mean(axis=2)
        spectrum = np.fft.rfft(hop, axis=1)
        low, high = (round(hz * n_samples / self.rate_hz) for hz in _SPEECH_HZ)
        band = spectrum[:, low : high + 1]
        power = np.maximum(hop.var(axis=1, dtype=np.float64), 10 ** (_SILENCE_DB / 10))
        return _Hop(
            np.real(band @ band.conj().T).astype(np.float64) / max(1, n_samples) ** 2,
            10 * np.log10(power),
            coarse,
        )

    def _mixed(self, hop: Audio) -> Audio:
        """Return a hop as one channel, with a fade from the weights of the hop before."""
        weights = self._decided()
        before, self._weights = self._weights, weights
        if np.array_equal(weights, self._mean):
            mixed: Audio = hop.mean(axis=0, keepdims=True, dtype=np.float32)
        else:
            mixed = (weights.astype(np.float32) @ hop)[None]
        if self._n_hops > 1 and not np.array_equal(before, weights):
            n_fade = min(hop.shape[1], max(1, round(_FADE_S * self.rate_hz)))
            share = np.linspace(0, 1, n_fade, dtype=np.float32)
            old = before.astype(np.float32) @ hop[:, :n_fade]
            mixed[0, :n_fade] = (1 - share) * old + share * mixed[0, :n_fade]
        return mixed

    def _decided(self) -> _Matrix:
        """Return the weight of each channel in the next hop, from the hops around it."""
        gram = np.sum([hop.gram for hop in self._hops], axis=0)
        self._align(gram)
        if self.n_channels <= _MAX_COPY_CHANNELS and self._n_hops % _COPY_EVERY_HOPS == 0:
            self._find_late()
        self._find_noises()
        self._n_hops += 1
        kept = ~(self._copies() | self._noises)
        if not kept.any():
            kept = ~self._noises
        if kept.all() and (self._signs > 0).all():
            return self._mean
        weights: _Matrix = np.where(kept, self._signs, 0.0) / max(1, kept.sum())
        return weights

    def _align(self, gram: _Matrix) -> None:
        """Choose the channels' signs so that they do not cancel one another in the sum."""
        if not gram.any():
            return
        signs = np.ones(self.n_channels)
        first, *others = np.argsort(-np.diag(gram), kind="stable")
        done = [first]
        for channel in others:
            signs[channel] = -1.0 if gram[channel, done] @ signs[done] < 0 else 1.0
            done.append(channel)
        if signs.sum() < 0:
            signs = -signs
        aligned, plain = signs @ gram @ signs, gram.sum()
        held = self._signs @ gram @ self._signs
        if plain < _CANCELS * aligned:
            if held < _CANCELS * aligned or (self._signs > 0).all():
                self._signs = signs
        elif plain >= held:
            self._signs = np.ones(self.n_channels)

    def _find_late(self) -> None:
        """Find channels that are late copies of another."""
        coarse = np.diff(np.concatenate([hop.coarse for hop in self._hops], axis=1), axis=1)
        energy = float(np.sum(coarse.astype(np.float64) ** 2, axis=1).max(initial=0.0))
        self._loudest = max(self._loudest, energy)
        if coarse.shape[1] < self._coarse_hop_samples or energy <= 0.01 * self._loudest:
            return  # no speech: nothing changes
        n_points = 1 << (2 * coarse.shape[1] - 1).bit_length()
        spectra = np.fft.rfft(coarse, n_points, axis=1)
        # Whitened, so that all of speech counts and not its loudest tone, which is like itself at any lag.
        spectra /= np.maximum(np.abs(spectra), 1e-9 + 1e-3 * np.abs(spectra).max(axis=1, keepdims=True))
        for channel, other in itertools.permutations(range(self.n_channels), 2):
            if other in self._late or (channel in self._late and self._late[channel].of != other):
                continue
            likeness, lag = _late_likeness(spectra[channel], spectra[other], self._lags)
            if likeness > _COPY:
                self._late[channel] = _Late(other, lag)
            elif likeness < _NO_COPY:
                self._late.pop(channel, None)

    def _copies(self) -> npt.NDArray[np.bool_]:
        """Return which channels now hold a late copy and no speech of their own."""
        copies = np.zeros(self.n_channels, dtype=bool)
        if not self._late:
            return copies
        now = max(0, len(self._hops) - 1 - self._n_ahead)
        hops = [hop.coarse for hop in itertools.islice(self._hops, now + 1)]
        coarse = np.concatenate(hops, axis=1).astype(np.float64)
        end, n_samples = coarse.shape[1], hops[-1].shape[1]
        for channel, late in self._late.items():
            start = max(0, end - n_samples - late.lag)
            earlier = coarse[late.of, start : end - late.lag]
            copy = coarse[channel, end - len(earlier) :]
            energy = np.sqrt((earlier @ earlier) * (copy @ copy))
            copies[channel] = energy > 0 and abs(earlier @ copy) > _EXPLAINS * energy
        return copies

    def _find_noises(self) -> None:
        levels = np.array([hop.level_db for hop in self._hops if np.any(hop.level_db > _SILENCE_DB)])
        if len(levels) < _HOPS_PER_S // 2:
            self._noises[:] = False
            return
        ordered = np.sort(levels, axis=0)
        quiet, usual, loud = ordered[[round(share * (len(levels) - 1)) for share in (0.1, 0.5, 0.9)]]
        now = levels[max(0, len(levels) - 1 - self._n_ahead)]
        most_speech = np.max(loud[loud - quiet > _LIVELY_DB], initial=_SILENCE_DB)
        steady = (loud - quiet < _STEADY_DB) & (now < usual + _EVENT_DB) & (levels.max(axis=0) < usual + _EVENT_DB)
        covers = (usual > most_speech + _COVERS_DB) & (most_speech > _SILENCE_DB)
        self._noises = steady & (covers | self._noises)


def _late_likeness(
    one: npt.NDArray[np.complex128], other: npt.NDArray[np.complex128], lags: tuple[int, int]
) -> tuple[float, int]:
    """Return the likeness of one to an earlier part of other, and the lag: 1 for a copy, 0 if there is none."""
    products = np.abs(np.fft.irfft(one * other.conj()))
    shortest, longest = lags[0], min(lags[1], len(products) // 2)
    if longest <= shortest:
        return 0.0, 0
    at_once = max(products[:shortest].max(), products[-shortest:].max())
    lag = shortest + int(products[shortest:longest].argmax())
    return (float(products[lag]) if products[lag] > 2 * at_once else 0.0), lag


def _nothing(n_channels: int) -> _Hop:
    return _Hop(
        np.zeros((n_channels, n_channels)), np.full(n_channels, _SILENCE_DB), np.zeros((n_channels, 0), np.float32)
    )


def _joined(parts: Iterator[Audio]) -> Audio:
    found = list(parts)
    return np.concatenate(found, axis=1) if found else np.zeros((1, 0), dtype=np.float32)
