"""Audio files that tests make, and the reason for which a decode refuses one."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import av
import numpy as np
import pytest

from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.errors import InvalidInput

CONTAINER = AudioFormat()
LIMITS = DecodeLimits(max_duration_s=60)


def tone(hertz: float = 440, rate_hz: int = 16_000, *, seconds: float = 1.0) -> Audio:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def wav(samples: Audio, rate_hz: int = 16_000, *, data_size: int | None = None) -> bytes:
    """Shape (n_samples,) or (n_channels, n_samples) as 16 bit; data_size: what the header says of it."""
    n_channels = 1 if samples.ndim == 1 else samples.shape[0]
    data = (samples.T * 32767).astype("<i2").tobytes()
    size = len(data) if data_size is None else data_size
    fmt = struct.pack("<HHIIHH", 1, n_channels, rate_hz, rate_hz * 2 * n_channels, 2 * n_channels, 16)
    riff_size = min(36 + size, 0xFFFFFFFF)
    return (
        b"RIFF" + struct.pack("<I", riff_size) + b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", size) + data
    )


def encoded(container: str, codec: str, *, seconds: float = 1.0, layout: str = "mono") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout=layout)
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 128_000
        samples = (tone(rate_hz=48_000, seconds=seconds) * 32767).astype(np.int16)
        samples = np.repeat(samples[None], stream.channels, axis=1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = 48_000
        for part in (frame, None):
            output.mux(stream.encode(part))
    return file.getvalue()


CODECS = {"flac": "flac", "ogg": "libopus", "webm": "libopus", "mp4": "aac", "mp3": "libmp3lame"}
SMALL = {"wav": wav(tone(seconds=0.2))} | {name: encoded(name, codec, seconds=0.2) for name, codec in CODECS.items()}


def reason_of(data: bytes | BinaryIO, format: AudioFormat = CONTAINER, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(data, format, limits)
    assert caught.value.violations[0].field == "audio.content"
    return caught.value.reason


class Pipe(io.RawIOBase):
    """A file that cannot seek, and gives a little at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 1_000) if size >= 0 else 1_000)
