"""Whole recordings, of every container: `decode`, as `Transcribe` and jobs call it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.fuzz.inputs import Source, recordings
from typeless_grpc.audio.decode import Decoded, DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, AudioFormat
from typeless_grpc.errors import InvalidInput

MAX_BYTES = 16_384
LIMIT_S = 60.0
N_CHANNELS = 8


def seeds() -> Iterator[bytes]:
    for data in recordings():
        yield b"\0" + data


def one(data: bytes) -> None:
    source = Source(data)
    flags = source.number(256)
    format = AudioFormat(sample_rate_hz=48_000 if flags & 2 else None, n_channels=1 if flags & 4 else None)
    first = attempt(source.rest, format, separate=bool(flags & 1))
    again = attempt(source.rest, format, separate=bool(flags & 1))
    if isinstance(first, str) or isinstance(again, str):
        assert first == again, f"{first} and then {again}"
        return
    check(first, separate=bool(flags & 1))
    assert np.array_equal(first.samples, again.samples), "the same bytes are other samples"


def attempt(data: bytes, format: AudioFormat, *, separate: bool) -> Decoded | str:
    """The samples, or the reason of the refusal."""
    try:
        return decode(data, format, DecodeLimits(LIMIT_S, N_CHANNELS), separate_channels=separate)
    except InvalidInput as error:
        assert error.reason
        assert all(violation.field for violation in error.violations), error.violations
        return error.reason


def check(decoded: Decoded, *, separate: bool) -> None:
    samples = decoded.samples
    assert samples.dtype == np.float32
    assert samples.ndim == (2 if separate else 1)
    assert samples.size <= LIMIT_S * SAMPLE_RATE_HZ
    assert samples.size
    assert np.isfinite(samples).all()
    assert float(np.abs(samples).max()) <= 1.0
    assert 0 < decoded.duration_s <= LIMIT_S
