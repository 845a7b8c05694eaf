"""Decodes a container while its bytes arrive.

FFmpeg pulls bytes from a file, so this blocks: it has a thread or a process of its own. Given bytes, it decodes until
it needs more, and hands over what it has. Nothing runs ahead, so memory is bounded by the data that was fed, and the
result does not depend on how the bytes were cut.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO, Protocol, cast

import numpy as np

from typeless_grpc.audio.containers import ContainerReader
from typeless_grpc.audio.converter import Converter
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.errors import InvalidInput

_BLOCK_SAMPLES = SAMPLE_RATE_HZ  # blocks are not much longer

# Decode with as little buffered audio as the format allows. ignore_length: the one in a WAV header, see `wav.py`.
_LIVE_OPTIONS = {"probesize": "8192", "analyzeduration": "100000", "ignore_length": "1"}


class Feeder(Protocol):
    """The other side of the decoder: gives it bytes, and takes samples. Its methods may raise DecodeCancelled."""

    def more(self) -> bytes:
        """Wait for more bytes; all audio of the earlier ones was handed over. Empty at the end of the input."""
        ...

    def opened(self, declared_s: float | None) -> None:
        """Take the length of the audio in its header, None if unknown."""
        ...

    def take(self, samples: Audio) -> None:
        """Take a block of samples; wait until there is room for it."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the audio is no longer wanted."""
        ...


def decode_arriving(feeder: Feeder, format: AudioFormat, *, field: str, is_live: bool) -> None:
    """Decode one container to its end. Raises InvalidInput as `ContainerReader` does, and DecodeCancelled."""
    _ArrivingContainer(feeder).decode(format, field=field, is_live=is_live)


class _ArrivingContainer:
    """One container while it arrives."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._pipe = _Pipe(self._starve)
        self._gathered: list[Audio] = []
        self._has_audio = False

    def decode(self, format: AudioFormat, *, field: str, is_live: bool) -> None:
        try:
            self._decode(format, field, is_live)
        except InvalidInput as error:
            if self._pipe.head[4:8] != b"ftyp" or self._has_audio:
                raise
            why = "an MP4 file whose index comes last cannot be decoded as it arrives: Transcribe takes it"
            raise InvalidInput(f"{field}.content", why, reason="AUDIO_UNDECODABLE") from error

    def _decode(self, format: AudioFormat, field: str, is_live: bool) -> None:
        """Decode a container while its bytes arrive, and pass its samples on in blocks."""
        # The pipe has the methods of a file that ContainerReader and PyAV use.
        file = cast(BinaryIO, self._pipe)
        reader = ContainerReader(file, format, field=field, cancelled=self._feeder.is_cancelled, options=_LIVE_OPTIONS)
        with closing(reader):
            self._feeder.opened(reader.declared_s)
            converter = Converter(is_live=is_live)
            for block in reader.blocks():
                self._gathered.append(converter.feed(block.samples, block.rate_hz))
                if sum(map(len, self._gathered)) >= _BLOCK_SAMPLES:
                    self._flush()
            self._gathered.append(converter.flush())
            self._flush()

    def _starve(self) -> bytes:
        """Hand over the audio that is ready, and wait for more bytes."""
        self._flush()
        return self._feeder.more()

    def _flush(self) -> None:
        block = np.concatenate(self._gathered) if self._gathered else np.zeros(0, dtype=np.float32)
        self._gathered = []
        if len(block):
            self._has_audio = True
            self._feeder.take(block)


class _Pipe:
    """A file that cannot seek, and whose reader waits where there are no bytes yet."""

    def __init__(self, starve: Callable[[], bytes]) -> None:
        """starve: waits for bytes, and returns none at the end."""
        self.head = b""  # the first bytes, as far as they were read
        self._data = bytearray()
        self._ended = False
        self._starve = starve

    def read(self, n_bytes: int) -> bytes:
        if not self._data and not self._ended:
            self._data += self._starve()
            self._ended = not self._data
        data = bytes(self._data[:n_bytes])
        del self._data[:n_bytes]
        self.head += data[: max(0, 16 - len(self.head))]
        return data

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("a stream cannot seek")

    tell = seek
