"""Finds raw audio whose bytes are of another encoding than declared: of another width, byte order or kind.

Sound is smooth: in the right encoding, each sample is close to the one before it. In a wrong encoding it is noise, or
jumps. So a declaration is wrong if the bytes are noise as declared and smooth in another encoding. Eight-bit samples
that are declared as 16-bit ones are still smooth; they show in that the two bytes of a sample have the same
distribution, which low and high bytes never have. Noise, tones and silence are smooth in no other encoding, and pass.

docs/measurements/signals.md has the measurements that chose the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.g711 import ALAW, MULAW
from typeless_grpc.errors import InvalidInput

_WINDOW_S, _MIN_WINDOW_S = 1.0, 0.25
_MAX_WINDOWS = 60  # afterwards the declared encoding is accepted, as it is for noise
_MIN_SAMPLES = 200

_NOISE, _SMOOTH = 0.3, 0.6  # correlation of neighboring samples: at most this, of either sign, and above this
_TIMES_SMOOTHER = 20  # 1 less the correlation, in the other byte order
_SETTLED = 0.5  # as declared: no other encoding is tried any more
_SAME_BYTES, _OTHER_BYTES = 0.25, 0.5  # total variation distance between the distributions of even and odd bytes
_MIN_BYTE_VALUES, _MIN_SHARE = 4, 0.003  # values that high bytes take so often; those of faint audio are two
_LOUD, _MAX_LOUD_SHARE = 0.7, 0.1  # of full scale; speech is rarely as loud, misread bytes often are
_MAX_FLOAT, _MAX_INTEGER, _TINY_FLOAT, _MAX_ODD_SHARE = 4.0, 2.0**33, 1e-25, 0.05

_Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Reading:
    """One way to read bytes. read: from bytes of whole samples to interleaved samples, 1 at full scale."""

    name: str
    sample_bytes: int
    read: Callable[[bytes], _Samples]
    is_float: bool = False
    is_big_endian: bool = False


def _floats(dtype: str) -> Callable[[bytes], _Samples]:
    """Return a `read` of `_Reading` for floats."""

    def read(data: bytes) -> _Samples:
        with np.errstate(all="ignore"):  # bytes of another encoding have any value
            return np.frombuffer(data, dtype).astype(np.float32)

    return read


def _integers(width: int, order: int = 1) -> Callable[[bytes], _Samples]:
    """Return a `read` of `_Reading` for integers of width bytes. order: -1 for big-endian.

    It reads the highest 16 bits of each sample, so that noise in the lower ones counts for nothing.
    """

    def read(data: bytes) -> _Samples:
        high = np.frombuffer(data, np.uint8).reshape(-1, width)[:, ::order][:, -2:]
        return np.asarray(np.ascontiguousarray(high).view("<i2").ravel() / 32768.0, dtype=np.float32)

    return read


def _signed(values: npt.NDArray[Any]) -> _Samples:
    return np.asarray(values / 128.0 - 1.0, dtype=np.float32)


_WIDE = (
    _Reading("16-bit little-endian integers", 2, _integers(2)),
    _Reading("16-bit big-endian integers", 2, _integers(2, -1), is_big_endian=True),
    _Reading("24-bit little-endian integers", 3, _integers(3)),
    _Reading("24-bit big-endian integers", 3, _integers(3, -1), is_big_endian=True),
    _Reading("32-bit little-endian integers", 4, _integers(4)),
    _Reading("32-bit big-endian integers", 4, _integers(4, -1), is_big_endian=True),
    _Reading("32-bit little-endian floats", 4, _floats("<f4"), is_float=True),
    _Reading("32-bit big-endian floats", 4, _floats(">f4"), is_float=True, is_big_endian=True),
    _Reading("64-bit little-endian floats", 8, _floats("<f8"), is_float=True),
)
_NARROW = (
    _Reading("8-bit unsigned integers", 1, lambda data: _signed(np.frombuffer(data, np.uint8))),
    _Reading("8-bit signed integers", 1, lambda data: _signed(np.frombuffer(data, np.uint8) ^ 0x80)),
    _Reading("mu-law bytes", 1, lambda data: MULAW[np.frombuffer(data, np.uint8)]),
    _Reading("A-law bytes", 1, lambda data: ALAW[np.frombuffer(data, np.uint8)]),
)
_DECLARED = {
    Encoding.PCM_S16LE: _WIDE[0],
    Encoding.PCM_F32LE: _WIDE[6],
    Encoding.MULAW: _NARROW[2],
    Encoding.ALAW: _NARROW[3],
}


class EncodingCheck:
    """Checks the beginning of raw audio, in windows of a second, until the declared encoding is confirmed."""

    def __init__(self, format: AudioFormat, field: str) -> None:
        """format: raw and valid. field: path of the message that holds it."""
        self._format, self._field = format, field
        self._window_bytes = int(_WINDOW_S * (format.sample_rate_hz or 0)) * format.frame_bytes
        self._window = bytearray()
        self._n_windows = 0
        self._is_settled = False

    def feed(self, data: bytes) -> None:
        """Check whole samples. Raises InvalidInput (AUDIO_UNDECODABLE) if they are of another encoding."""
        at = 0
        while not self._is_settled and at < len(data):
            n_taken = min(len(data) - at, self._window_bytes - len(self._window))
            self._window += data[at : at + n_taken]
            at += n_taken
            if len(self._window) == self._window_bytes:
                self._check()

    def finish(self) -> None:
        """Check what is left. Raises as `feed` does."""
        if not self._is_settled and len(self._window) >= _MIN_WINDOW_S / _WINDOW_S * self._window_bytes:
            self._check()
        self._is_settled = True

    def refusal(self, data: bytes) -> InvalidInput | None:
        """Return the error if these bytes, which cannot be what was declared, are smooth in another encoding."""
        name, _ = recognized_encoding(data, self._format)
        return self._refusal(name) if name else None

    def _check(self) -> None:
        window = bytes(self._window)
        self._window.clear()
        self._n_windows += 1
        name, is_right = recognized_encoding(window, self._format)
        if name:
            raise self._refusal(name)
        self._is_settled = is_right or self._n_windows == _MAX_WINDOWS

    def _refusal(self, name: str) -> InvalidInput:
        declared = self._format.encoding.name
        why = (
            f"the bytes do not look like {declared}: they look like {name}. "
            "Convert them, or send a file that says what it holds, such as WAV"
        )
        return InvalidInput(f"{self._field}.format.encoding", why, reason="AUDIO_UNDECODABLE")


def recognized_encoding(data: bytes, format: AudioFormat) -> tuple[str, bool]:
    """Return the encoding of the bytes if it is certainly not the declared one, else "", and whether that one is right.

    data: begins with a whole sample. Of noise and silence, neither is known.
    """
    declared, n_channels = _DECLARED[format.encoding], format.n_channels or 1
    samples = _channels(data, declared, n_channels)
    are_floats = declared.is_float and _are_floats(samples)
    # Only 64-bit floats look like floats of 32 bits, where every second one is 0.
    if are_floats and declared.read(data)[::2].any():
        return "", True
    correlation, strongest = _correlations(samples) if are_floats or not declared.is_float else (0.0, 0.0)
    found = [
        (other, one.name)
        for one in _others(data, declared, n_channels, is_noise=strongest < _NOISE)
        if (other := _smoothness(data, one, declared, n_channels)) > max(_SMOOTH, correlation)
    ]
    if found:
        return max(found)[1], False
    swapped = _smoothness(data, _WIDE[1], declared, n_channels) if declared is _WIDE[0] else 0.0
    if swapped > _SMOOTH and _TIMES_SMOOTHER * (1 - swapped) < 1 - correlation:
        return _WIDE[1].name, False  # at high rates, low bytes are smooth, too
    return "", correlation > _SETTLED and swapped <= _SMOOTH  # faint audio is as smooth in the other byte order


def _others(data: bytes, declared: _Reading, n_channels: int, *, is_noise: bool) -> Iterator[_Reading]:
    """Yield the encodings that the bytes may be in instead. is_noise: every channel is noise as declared."""
    distance, n_values = _even_and_odd_bytes(data)
    if declared.sample_bytes > 1 and distance < _SAME_BYTES and n_values >= _MIN_BYTE_VALUES:
        yield from _NARROW
    has_wide_samples = declared.sample_bytes == 1 and n_channels == 1 and distance > _OTHER_BYTES
    if is_noise or has_wide_samples:
        yield from (one for one in _WIDE if one is not declared)


def _even_and_odd_bytes(data: bytes) -> tuple[float, int]:
    """Return how different even and odd bytes are in their distribution, in [0, 1]; how many values both often have."""
    pairs = np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2)
    if not len(pairs):
        return 0.0, 0
    even, odd = (np.bincount(pairs[:, i], minlength=256) / len(pairs) for i in (0, 1))
    n_values = min(int(np.count_nonzero(one >= _MIN_SHARE)) for one in (even, odd))
    return float(np.abs(even - odd).sum()) / 2, n_values


def _smoothness(data: bytes, reading: _Reading, declared: _Reading, n_channels: int) -> float:
    """Return the correlation of neighboring samples; 0 if it is implausible that the bytes are in this encoding."""
    samples = _channels(data, reading, n_channels)
    if samples.shape[1] < _MIN_SAMPLES or not _is_plausible(samples, reading):
        return 0.0
    if reading.sample_bytes > 1 and not reading.is_float and _n_high_values(data, reading) < _MIN_BYTE_VALUES:
        return 0.0
    is_wider = reading.sample_bytes > declared.sample_bytes
    if is_wider and _correlations(_low_parts(data, reading, n_channels))[0] >= _NOISE:
        return 0.0  # the low part of a sample is noise; here it is sound, of another channel or moment
    return _correlations(samples)[0]


def _are_floats(samples: _Samples) -> bool:
    """Whether nearly all samples have a magnitude that programs write, integers as floats included."""
    size = np.abs(samples)
    is_odd = ~(size <= _MAX_INTEGER) | ((size > 0) & (size < _TINY_FLOAT))
    return not samples.size or bool(is_odd.mean() < _MAX_ODD_SHARE)


def _n_high_values(data: bytes, reading: _Reading) -> int:
    """Return how many values the highest byte of a sample often has."""
    width = reading.sample_bytes
    high = np.frombuffer(data, np.uint8)[0 if reading.is_big_endian else width - 1 :: width]
    return int(np.count_nonzero(np.bincount(high, minlength=256) >= _MIN_SHARE * len(high)))


def _is_plausible(samples: _Samples, reading: _Reading) -> bool:
    if not np.isfinite(samples).all():
        return False
    size = np.abs(samples)
    if reading.is_float:
        return bool(size.max() <= _MAX_FLOAT) and _are_floats(samples)
    return bool((size > _LOUD).mean() < _MAX_LOUD_SHARE)


def _low_parts(data: bytes, reading: _Reading, n_channels: int) -> _Samples:
    """Return the two bytes below the highest two of each sample.

    Of samples of two or three bytes, it is the one below the highest.
    """
    width = reading.sample_bytes
    n_bytes = len(data) // (width * n_channels) * width * n_channels
    parts = np.frombuffer(data[:n_bytes], np.uint8).reshape(-1, width)
    parts = parts[:, ::-1] if reading.is_big_endian else parts
    low = parts[:, width - 2 : width - 1] if width < 4 else parts[:, width - 4 : width - 2]
    values = np.ascontiguousarray(low).view("i1" if width < 4 else "<i2")
    return values.reshape(-1, n_channels).T.astype(np.float32)


def _channels(data: bytes, reading: _Reading, n_channels: int) -> _Samples:
    """Return the samples of each channel, shape (n_channels, n_samples)."""
    frame_bytes = reading.sample_bytes * n_channels
    return reading.read(data[: len(data) // frame_bytes * frame_bytes]).reshape(-1, n_channels).T


def _correlations(samples: _Samples) -> tuple[float, float]:
    """Return the correlation of neighboring samples, in [-1, 1]: that of all channels, and that of the strongest."""
    if not samples.size or not np.isfinite(samples).all():
        return 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # misread floats
        samples = samples - samples[:, :1]  # a constant becomes exactly 0
        samples -= samples.mean(axis=1, keepdims=True)
        products, energy = (samples[:, 1:] * samples[:, :-1]).sum(axis=1), (samples * samples).sum(axis=1)
    if not np.isfinite(energy).all() or not energy.any():
        return 0.0, 0.0
    each = np.divide(products, energy, out=np.zeros_like(products), where=energy > 0)
    return float(products.sum() / energy.sum()), float(np.abs(each).max())
