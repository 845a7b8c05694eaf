"""The silent tail that the decoder expects after the speech, without the work of encoding it.

Whisper was trained on 30 s, so for most utterances most of the encoder's output is silence. The decoder needs it:
without a silent tail after the speech, its cross-attention finds no place to end, and it loops or stops early. The
encoder does not: its output for silence at some position depends only weakly on the speech before it. So the mean
output for silence is measured once for each model, position by position, over the speech in `calibration/` padded to
30 s. After that only the speech is encoded, and the stored silence is appended.

How this was chosen, what it costs and how accurate it is: docs/decisions/0005-calibrated-tail.md.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.engine.model import FULL_POSITIONS, FULL_WINDOW_S, POSITIONS_PER_S

log = logging.getLogger(__name__)

Positions = npt.NDArray[Any]  # shape (n_positions, d_model), float32 or float16

# In calibration, this much silence after the speech is skipped, because its output depends on the speech.
SKIPPED_S = 0.5

# Encoder output is padded to one of these lengths, so that utterances of different lengths share a batch, and a text
# does not depend on the rest of its batch. At least MIN_TAIL_POSITIONS follow the speech: decoding was worse with 100,
# and more gained nothing.
LENGTHS = (600, 1000, FULL_POSITIONS)
MIN_TAIL_POSITIONS = 300

# The calibration speech is cut to these lengths, because positions near the beginning are silent only after short
# speech.
CUTS_S: tuple[float | None, ...] = (None, 1.5, 3.0, None, 1.0, None, 3.0)


class Encoder(Protocol):
    """The part of a model that calibration needs; `Runtime` implements it."""

    def encode_positions(self, audio: Audio, n_positions: int) -> Positions:
        """Return encoder output of this length, for audio that is padded with zeros."""
        ...

    def decode_greedily(self, positions: Positions, language: str) -> list[int]:
        """Return the tokens of the greedy text."""
        ...

    def log_probability(self, positions: Positions, language: str, tokens: Sequence[int]) -> float:
        """Return the mean log probability of a text's tokens, given this encoder output."""
        ...


def n_encoded(audio_s: float, silence_s: float) -> int:
    """Return how many positions are encoded for audio and silence after it; at most those of 30 s."""
    return min(FULL_POSITIONS, math.ceil(round(min(FULL_WINDOW_S, audio_s + silence_s) * POSITIONS_PER_S, 3)))


def padded_length(n_positions: int) -> int:
    """Return the length of encoder output with its silent tail."""
    return next(length for length in LENGTHS if length >= min(FULL_POSITIONS, n_positions + MIN_TAIL_POSITIONS))


@dataclass(frozen=True, eq=False)
class Tail:
    """A model's encoder output for silence: shape (1500, d_model), float32, one row for each position."""

    silence: npt.NDArray[np.float32]

    def rounded(self) -> Tail:
        """Return the tail rounded to half precision, as all measurements in docs/measurements/ were made."""
        return Tail(self.silence.astype(np.float16).astype(np.float32))

    def append_to(self, encoded: Positions) -> Positions:
        """Return encoder output, followed by silence up to one of LENGTHS."""
        end = padded_length(len(encoded))
        if end <= len(encoded):
            return encoded
        return np.concatenate([encoded, self.silence[len(encoded) : end].astype(encoded.dtype)])


@dataclass(frozen=True)
class Sample:
    """A recording to calibrate on: speech without silence after it, and its language."""

    audio: Audio
    language: str


def calibration_samples() -> list[Sample]:
    """Return the calibration speech: seven synthesized utterances in five languages, some of them cut short."""
    directory = resources.files("typeless_grpc.engine") / "calibration"
    files = sorted((one for one in directory.iterdir() if one.name.endswith(".ogg")), key=lambda one: one.name)
    limits = DecodeLimits(max_duration_s=FULL_WINDOW_S)
    samples = []
    for file, cut_s in zip(files, itertools.cycle(CUTS_S), strict=False):
        audio = decode(file.read_bytes(), AudioFormat(), limits).samples
        end = len(audio) if cut_s is None else round(cut_s * SAMPLE_RATE_HZ)
        samples.append(Sample(audio[:end], file.name[:2]))
    return samples


@dataclass(frozen=True)
class _Comparison:
    """The mean log probability of the text of 30 s, with the tail and without it.

    is_runaway: decoding with the tail does not end.
    """

    with_tail: float
    without: float
    is_runaway: bool


def calibrate(encoder: Encoder, samples: Sequence[Sample], *, n_workers: int = 1) -> Tail | None:
    """Measure a model's silent tail, and check that texts are likelier with it than without.

    n_workers: samples at the same time. Returns None if the check fails; then all of 30 s must be encoded.
    """
    with ThreadPoolExecutor(n_workers, "calibrating") as threads:
        full = list(threads.map(lambda one: encoder.encode_positions(one.audio, FULL_POSITIONS), samples))
        tail = Tail(_mean_silence(samples, full))
        compared = list(threads.map(functools.partial(_compare, encoder, tail), samples, full))
    with_tail, without = (sum(getattr(one, name) for one in compared) for name in ("with_tail", "without"))
    n_runaway = sum(one.is_runaway for one in compared)
    if with_tail > without and not n_runaway:
        return tail
    log.warning(
        "calibration failed, windows of 30 s are used: the log probability of their text is %.2f with calibrated"
        " silence and %.2f without, and %d texts do not end",
        *(with_tail, without, n_runaway),
    )
    return None


def _compare(encoder: Encoder, tail: Tail, sample: Sample, full: Positions) -> _Comparison:
    tokens = encoder.decode_greedily(full, sample.language)
    if not tokens:
        return _Comparison(0.0, 0.0, is_runaway=False)
    short = encoder.encode_positions(sample.audio, n_encoded(len(sample.audio) / SAMPLE_RATE_HZ, SKIPPED_S))
    padded = tail.append_to(short)
    return _Comparison(
        encoder.log_probability(padded, sample.language, tokens),
        encoder.log_probability(short, sample.language, tokens),
        is_runaway=len(encoder.decode_greedily(padded, sample.language)) > 2 * len(tokens) + 8,
    )


def _mean_silence(samples: Sequence[Sample], encoded: Sequence[Positions]) -> npt.NDArray[np.float32]:
    total = np.zeros(encoded[0].shape, np.float64)
    count = np.zeros((len(total), 1))
    for sample, positions in zip(samples, encoded, strict=True):
        first = n_encoded(len(sample.audio) / SAMPLE_RATE_HZ, SKIPPED_S)
        total[first:] += positions[first:]
        count[first:] += 1
    mean = total / np.maximum(count, 1)
    earliest = int(np.argmax(count > 0))
    mean[:earliest] = mean[earliest]  # positions before the end of the shortest speech repeat the first measured one
    return mean.astype(np.float32)
