"""The silence that the decoder expects behind speech, without the work of encoding it.

Whisper was trained on 30 s, so for most utterances most of the encoder's output is silence. The decoder needs it:
without a silent tail behind the speech its cross-attention finds no place to end, and it loops or stops early. The
encoder does not: what it makes of silence at some position depends only weakly on the speech before it. So the mean
output for silence is measured once for each model, position by position, over the speech in `calibration/` padded to
30 s. After that only the speech is encoded, and the kept silence follows it.

How this was chosen, what it costs and how right it is: docs/decisions/0005-calibrated-tail.md.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.engine.model import FULL_POSITIONS, FULL_WINDOW_S, POSITIONS_PER_S

log = logging.getLogger(__name__)

Positions = npt.NDArray[Any]  # shape (n_positions, d_model), float32 or float16

# Counted up whenever tails of an earlier version are not to be used any more.
VERSION = 3
FILE_NAME = "typeless-silence.npz"

# In calibration, silence right behind the speech is left out, because it depends on the speech.
LEFT_OUT_S = 0.5

# Encoder output comes in these lengths, so that utterances of different lengths share a batch, and a text does not
# depend on what else was in it. Behind the speech are at least LEAST_POSITIONS: decoding was worse with 100, and more
# gained nothing.
LENGTHS = (600, 1000, FULL_POSITIONS)
LEAST_POSITIONS = 300

# Of the calibration speech, cut to these lengths: positions near the beginning are silent only after short speech.
CUTS_S: tuple[float | None, ...] = (None, 1.5, 3.0, None, 1.0, None, 3.0)


class Encoder(Protocol):
    """What calibration asks of a model."""

    def encode_positions(self, audio: Audio, n_positions: int) -> Positions:
        """Encoder output of this length, for audio that is padded with zeros."""
        ...

    def write(self, positions: Positions, language: str) -> list[int]:
        """Decode greedily: the text's tokens."""
        ...

    def log_probability(self, positions: Positions, language: str, tokens: Sequence[int]) -> float:
        """The mean log probability of a text's tokens, given this encoder output."""
        ...


def n_encoded(audio_s: float, silence_s: float) -> int:
    """How many positions are encoded for so much audio and silence behind it; at most 30 s of both."""
    return min(FULL_POSITIONS, math.ceil(round(min(FULL_WINDOW_S, audio_s + silence_s) * POSITIONS_PER_S, 3)))


def whole_length(n_positions: int) -> int:
    """How long encoder output is once the kept silence is behind it."""
    return next(length for length in LENGTHS if length >= min(FULL_POSITIONS, n_positions + LEAST_POSITIONS))


@dataclass(frozen=True, eq=False)
class Tail:
    """What a model's encoder makes of silence. silence: shape (1500, d_model), float32, one row for each position."""

    silence: npt.NDArray[np.float32]

    def rounded(self) -> Tail:
        """In half precision, in which every figure in docs/measurements/ was measured."""
        return Tail(self.silence.astype(np.float16).astype(np.float32))

    def behind(self, encoded: Positions) -> Positions:
        """Encoder output, followed by silence up to one of LENGTHS."""
        end = whole_length(len(encoded))
        if end <= len(encoded):
            return encoded
        return np.concatenate([encoded, self.silence[len(encoded) : end].astype(encoded.dtype)])


@dataclass(frozen=True)
class Sample:
    """Speech to calibrate on, and the language that is spoken in it."""

    audio: Audio
    language: str


def samples() -> list[Sample]:
    """The calibration speech: seven synthesized utterances in five languages, some of them cut short."""
    directory = resources.files("typeless_grpc.engine") / "calibration"
    files = sorted((one for one in directory.iterdir() if one.name.endswith(".ogg")), key=lambda one: one.name)
    limits = DecodeLimits(max_duration_s=FULL_WINDOW_S)
    found = []
    for file, cut_s in zip(files, itertools.cycle(CUTS_S), strict=False):
        audio = decode(file.read_bytes(), AudioFormat(), limits).samples
        end = len(audio) if cut_s is None else round(cut_s * SAMPLE_RATE_HZ)
        found.append(Sample(audio[:end], file.name[:2]))
    return found


@dataclass(frozen=True)
class _Comparison:
    """The text that 30 s give: its mean log probability with kept silence and without. is_runaway: with it, no end."""

    with_silence: float
    without: float
    is_runaway: bool


def calibrated(encoder: Encoder, speech: Sequence[Sample], *, n_workers: int = 1) -> Tail | None:
    """Measure a model's silence, and check that its decoder understands speech better with it than without.

    n_workers: samples at the same time. None where it does not: then speech is to be encoded with all of its 30 s.
    """
    with ThreadPoolExecutor(n_workers, "calibrating") as threads:
        full = list(threads.map(lambda one: encoder.encode_positions(one.audio, FULL_POSITIONS), speech))
        tail = Tail(_mean_silence(speech, full))
        compared = list(threads.map(functools.partial(_compared, encoder, tail), speech, full))
    with_silence, without = (sum(getattr(one, name) for one in compared) for name in ("with_silence", "without"))
    n_runaway = sum(one.is_runaway for one in compared)
    if with_silence > without and not n_runaway:
        return tail
    log.warning(
        "windows of 30 s are used: the text that they give has a log probability of %.2f with calibrated silence, %.2f"
        " without, and %d texts have no end",
        *(with_silence, without, n_runaway),
    )
    return None


def _compared(encoder: Encoder, tail: Tail, one: Sample, full: Positions) -> _Comparison:
    tokens = encoder.write(full, one.language)
    if not tokens:
        return _Comparison(0.0, 0.0, is_runaway=False)
    short = encoder.encode_positions(one.audio, n_encoded(len(one.audio) / SAMPLE_RATE_HZ, LEFT_OUT_S))
    whole = tail.behind(short)
    return _Comparison(
        encoder.log_probability(whole, one.language, tokens),
        encoder.log_probability(short, one.language, tokens),
        is_runaway=len(encoder.write(whole, one.language)) > 2 * len(tokens) + 8,
    )


def _mean_silence(speech: Sequence[Sample], encoded: Sequence[Positions]) -> npt.NDArray[np.float32]:
    total = np.zeros(encoded[0].shape, np.float64)
    count = np.zeros((len(total), 1))
    for one, positions in zip(speech, encoded, strict=True):
        first = n_encoded(len(one.audio) / SAMPLE_RATE_HZ, LEFT_OUT_S)
        total[first:] += positions[first:]
        count[first:] += 1
    mean = total / np.maximum(count, 1)
    earliest = int(np.argmax(count > 0))
    mean[:earliest] = mean[earliest]  # before the end of the shortest speech: as right behind it
    return mean.astype(np.float32)


# ---- kept beside the model --------------------------------------------------------------------------------------


def is_kept(directories: Sequence[Path], fingerprint: str) -> bool:
    """Whether one of these directories has the tail of this model, so that `kept_or_calibrated` only reads it."""
    return any(_is_readable(directory / FILE_NAME, fingerprint) for directory in directories)


def kept_or_calibrated(
    directories: Sequence[Path], fingerprint: str, calibrate: Callable[[], Tail | None]
) -> Tail | None:
    """The tail that is kept in one of these directories, else one measured now and kept in the first that takes it.

    fingerprint: of the model's weights and of how they are computed; a tail with another one is measured again.
    """
    for directory in directories:
        with suppress(*_UNREADABLE):
            return _read(directory / FILE_NAME, fingerprint)
    tail = calibrate()
    for directory in directories:
        with suppress(OSError):
            _write(directory / FILE_NAME, fingerprint, tail)
            break
    else:
        log.warning("the calibrated silence cannot be kept in %s: it is measured at every start", directories[0])
    return tail


def fingerprint_of(weights: Path, *facts: object) -> str:
    """A checksum of a file of weights, and of whatever else decides about their output.

    Of the file it takes the size and eight parts, a mebibyte each, because reading gigabytes would take seconds.
    """
    digest, size, part = hashlib.sha256(repr((VERSION, *facts)).encode()), weights.stat().st_size, 1 << 20
    digest.update(str(size).encode())
    with weights.open("rb") as file:
        for index in range(8):
            file.seek(max(0, (size - part) * index // 7))
            digest.update(file.read(part))
    return digest.hexdigest()


# What `_read` raises for a file that is absent, damaged or of another model.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def _is_readable(path: Path, fingerprint: str) -> bool:
    try:
        _read(path, fingerprint)
    except _UNREADABLE:
        return False
    return True


def _read(path: Path, fingerprint: str) -> Tail | None:
    """Raises ValueError for a file of another model, or one that is damaged."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        silence, found, checksum = file["silence"], str(file["fingerprint"]), str(file["checksum"])
    if found != fingerprint or checksum != _checksum(silence):
        raise ValueError(f"{path} is of another model, or damaged")
    return Tail(silence) if silence.size else None


def _write(path: Path, fingerprint: str, tail: Tail | None) -> None:
    """Whole or not at all: several servers may start at once. None is kept as well, so that it is found out once."""
    silence = np.zeros((0, 0), np.float32) if tail is None else tail.silence
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".silence-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, silence=silence, fingerprint=fingerprint, checksum=_checksum(silence))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checksum(silence: Positions) -> str:
    return hashlib.sha256(np.ascontiguousarray(silence).tobytes()).hexdigest()
