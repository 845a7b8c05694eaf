"""Decodes bytes to float32 at 16 kHz: as a whole, or block by block, so that hours fit into little memory.

Only decoded samples count against the limit, not what a header declares. Blocks are counted as they come, so a file
costs at most the limit, whatever its header declares.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import numpy as np

from typeless_grpc.audio import completeness, joined
from typeless_grpc.audio.containers import (
    Block,
    ContainerReader,
    DecodeCancelled,
    SourceInfo,
    check_size,
    too_long,
    truncated,
)
from typeless_grpc.audio.converter import ChannelsChanged, Converter
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.growing import GrowingAudio, Reserve, unlimited
from typeless_grpc.audio.pcm import PcmReader
from typeless_grpc.audio.wav import NotForUs, WavParts
from typeless_grpc.errors import InvalidInput

__all__ = ["AudioReader", "DecodeCancelled", "DecodeLimits", "Decoded", "SourceInfo", "decode", "iter_decode"]


@dataclass(frozen=True)
class DecodeLimits:
    """The limits of one recording.

    max_duration_s: seconds of decoded audio, above 0. `decode` holds all of it in memory, 64 kB for each second, so it
    adds up the channels that are kept apart. max_channels: of a recording whose channels are kept apart.
    """

    max_duration_s: float
    max_channels: int = 8


@dataclass(frozen=True)
class Decoded:
    """A whole recording.

    samples: float32 in [-1, 1] at 16 kHz; shape (n_samples,), or (n_channels, n_samples) if channels are kept apart.
    """

    samples: Audio
    duration_s: float
    source: SourceInfo


def never() -> bool:
    """Return False: the `cancelled` of callers that do not cancel."""
    return False


class Reader(Protocol):
    """A recording that is decoded as it is read. Close it, or read its blocks to their end.

    position: how many bytes of the recording have been read, about.
    """

    source: SourceInfo

    @property
    def position(self) -> int: ...

    def blocks(self) -> Iterator[Audio]:
        """Yield the audio in order, in blocks that are never empty. Once only."""
        ...

    def close(self) -> None:
        """Stop decoding; the file stays open."""
        ...

    def channels_too_long(self) -> InvalidInput:
        """Return the error of channels that are kept apart and are too long together."""
        ...


class OpenReader(Protocol):
    """Makes a reader; arguments and errors are those of AudioReader."""

    def __call__(
        self,
        data: bytes | BinaryIO,
        format: AudioFormat,
        limits: DecodeLimits,
        *,
        field: str = "audio",
        cancelled: Callable[[], bool] = never,
        separate_channels: bool = False,
        block_s: float = 1.0,
    ) -> Reader: ...


class AudioReader:
    """A recording that is decoded as it is read. Close it, or read its blocks to their end.

    data: bytes, or a binary file of any kind, a pipe too; a file is read from its start if it can seek, and not closed.
    field: path of the `audio` message in the request, "items[3].audio". cancelled: called for every packet.
    separate_channels: blocks have shape (n_channels, n_samples) in place of the mono mix, (n_samples,).
    block_s: how long a block is, about; it also bounds memory.
    Raises InvalidInput with reason AUDIO_MISSING, AUDIO_UNDECODABLE, AUDIO_EMPTY, AUDIO_TRUNCATED, AUDIO_TOO_LONG, or
    about the format; about `options.channel_mode` (TOO_MANY_CHANNELS), before much of them is decoded.
    """

    source: SourceInfo

    def __init__(
        self,
        data: bytes | BinaryIO,
        format: AudioFormat,
        limits: DecodeLimits,
        *,
        field: str = "audio",
        cancelled: Callable[[], bool] = never,
        separate_channels: bool = False,
        block_s: float = 1.0,
    ) -> None:
        self._format = format.validated(field)
        self._limits, self._field, self._cancelled = limits, field, cancelled
        self._separate_channels, self._block_s = separate_channels, block_s
        self._file = io.BytesIO(data) if isinstance(data, bytes) else data
        self._n_bytes = self._file.seek(0, io.SEEK_END) if self._file.seekable() else None
        if self._n_bytes == 0:
            raise self._refusal("there are no bytes", "AUDIO_MISSING")
        if self._n_bytes is not None:
            self._file.seek(0)
        self._container: ContainerReader | None = None
        if self._format.is_raw:
            self._check_raw_size()
            rate_hz, n_channels = self._format.sample_rate_hz or 0, self._format.n_channels or 1
            self.source = SourceInfo("raw", self._format.encoding.value, rate_hz, n_channels)
        else:
            self._containers = self._opened()
            self._container = next(self._containers)
            self.source = self._container.source

    @property
    def position(self) -> int:
        """See `Reader`."""
        return self._file.tell()

    def close(self) -> None:
        """Stop decoding; the file stays open."""
        if self._container is not None:
            self._container.close()

    def blocks(self) -> Iterator[Audio]:
        """Yield the audio in order, in blocks that are never empty. Call it once.

        Raises the errors of the class, some only at the end of the recording, and DecodeCancelled.
        """
        with closing(self):
            n_samples = 0
            block_samples = max(1, round(1.2 * self._block_s * SAMPLE_RATE_HZ))  # held samples come all at once
            parts = self._raw_parts() if self._container is None else self._container_parts(self._container)
            for part in parts:
                n_samples += part.shape[-1]
                if n_samples > self._limits.max_duration_s * SAMPLE_RATE_HZ:
                    raise self._too_long()
                for start in range(0, part.shape[-1], block_samples):
                    yield part[..., start : start + block_samples]
            if n_samples == 0:
                raise self._refusal("it holds no audio", "AUDIO_EMPTY")

    def _raw_parts(self) -> Iterator[Audio]:
        reader = PcmReader(self._format, field=self._field, separate_channels=self._separate_channels)
        block_bytes = max(1, int(self._block_s * self._format.bytes_per_second))
        while data := self._file.read(block_bytes):
            if self._cancelled():
                raise DecodeCancelled
            yield reader.feed(data)
        yield reader.flush()
        if reader.n_pending_bytes:
            raise self._odd_bytes(reader.n_pending_bytes)

    def _opened(self) -> Iterator[ContainerReader]:
        """Yield the files that follow one another in the file. Read each before the next."""
        for part in joined.parts(self._file) if self._file.seekable() else [self._file]:
            wavs = self._wavs(part)
            if wavs is None:
                yield self._container_of(part)
                continue
            for wav in wavs:
                # A part has the methods of a file that ContainerReader and PyAV use.
                yield self._container_of(cast(BinaryIO, wav), {"ignore_length": "1"})
            if completeness.is_much(wavs.n_missing, self._n_bytes or 0):
                raise truncated(wavs.n_missing, self._field)

    def _container_of(self, file: BinaryIO, options: Mapping[str, str] | None = None) -> ContainerReader:
        return ContainerReader(
            file,
            self._format,
            field=self._field,
            cancelled=self._cancelled,
            max_pause_s=self._limits.max_duration_s,
            options=options,
        )

    def _wavs(self, file: BinaryIO) -> WavParts | None:
        if not file.seekable():
            return None
        try:
            wavs = WavParts(file)
        except NotForUs:
            file.seek(0)
            return None
        position = file.tell()
        check_size(file, field=self._field)
        file.seek(position)
        return wavs

    def _source_blocks(self, first: ContainerReader) -> Iterator[Block]:
        container: ContainerReader | None = first
        while container is not None:
            self._container = container
            with closing(container):
                try:
                    yield from container.blocks()
                except InvalidInput as error:
                    if error.reason != "AUDIO_EMPTY":  # others may hold some
                        raise
                container = next(self._containers, None)

    def _container_parts(self, container: ContainerReader) -> Iterator[Audio]:
        converter = Converter(separate_channels=self._separate_channels)
        for block in _gathered(self._source_blocks(container), self._block_s):
            self._check_channels(block.samples.shape[0])
            try:
                yield converter.feed(block.samples, block.rate_hz)
            except ChannelsChanged as error:
                why = "its number of channels changes on the way"
                raise self._refusal(why, "AUDIO_UNDECODABLE") from error
        yield converter.flush()

    def _check_channels(self, n_channels: int) -> None:
        if self._separate_channels and n_channels > self._limits.max_channels:
            why = f"the recording has {n_channels} channels; at most {self._limits.max_channels} can be kept apart"
            raise InvalidInput("options.channel_mode", why, reason="TOO_MANY_CHANNELS")

    def _check_raw_size(self) -> None:
        """Check the length from the size, before a sample is read."""
        if self._n_bytes is None:
            return
        if n_over := self._n_bytes % self._format.frame_bytes:
            raise self._odd_bytes(n_over)
        if self._n_bytes > self._limits.max_duration_s * self._format.bytes_per_second:
            raise self._too_long()

    def _odd_bytes(self, n_over: int) -> InvalidInput:
        size = f"{self._n_bytes} bytes" if self._n_bytes is not None else "it"
        frame_bytes, channels = self._format.frame_bytes, self._format.n_channels
        why = f"{size} end {n_over} into a frame of {frame_bytes} bytes ({self._format.encoding.value} x {channels})"
        return self._refusal(why, "AUDIO_TRUNCATED")

    def _too_long(self) -> InvalidInput:
        return too_long(self._limits.max_duration_s, self._field)

    def channels_too_long(self) -> InvalidInput:
        """See `Reader`."""
        return channels_too_long(self._limits, self._field)

    def _refusal(self, why: str, reason: str) -> InvalidInput:
        return InvalidInput(f"{self._field}.content", why, reason=reason)


def recognized_format(data: bytes | BinaryIO, format: AudioFormat) -> AudioFormat:
    """Return the format; that of a container if it may be one, and data begins as one. A file is left at its start."""
    if not (format.is_raw and format.may_be_container):
        return format
    if isinstance(data, bytes):
        head = data[: joined.HEAD_BYTES]
    elif data.seekable():
        data.seek(0)
        head = data.read(joined.HEAD_BYTES)
        data.seek(0)
    else:
        return format
    return AudioFormat() if joined.begins_file(head) else format


def reader_of(format: AudioFormat, open_container: OpenReader) -> OpenReader:
    """Return what makes the reader of a recording: raw samples are read here, whatever decodes containers."""
    return AudioReader if format.is_raw else open_container


def channels_too_long(limits: DecodeLimits, field: str) -> InvalidInput:
    """Return the error of channels that are kept apart and are too long together. field: path of the audio."""
    why = f"its channels are longer than {limits.max_duration_s:g} s together"
    return InvalidInput(f"{field}.content", why, reason="AUDIO_TOO_LONG")


def iter_decode(
    data: bytes | BinaryIO,
    format: AudioFormat,
    limits: DecodeLimits,
    *,
    field: str = "audio",
    cancelled: Callable[[], bool] = never,
    separate_channels: bool = False,
    block_s: float = 1.0,
) -> Iterator[Audio]:
    """Decode block by block; arguments, blocks and errors are those of AudioReader."""
    return AudioReader(
        data,
        format,
        limits,
        field=field,
        cancelled=cancelled,
        separate_channels=separate_channels,
        block_s=block_s,
    ).blocks()


def decode(
    data: bytes | BinaryIO,
    format: AudioFormat,
    limits: DecodeLimits,
    *,
    field: str = "audio",
    cancelled: Callable[[], bool] = never,
    separate_channels: bool = False,
    reserve: Reserve = unlimited,
    open_container: OpenReader = AudioReader,
) -> Decoded:
    """Decode a whole recording; arguments and errors are those of AudioReader.

    reserve: called before memory is taken for decoded samples; what it raises ends the decoding. open_container: makes
    the reader of what FFmpeg has to decode.
    """
    format = recognized_format(data, format)
    reader = reader_of(format, open_container)(
        data,
        format,
        limits,
        field=field,
        cancelled=cancelled,
        separate_channels=separate_channels,
    )
    max_samples = int(limits.max_duration_s * SAMPLE_RATE_HZ)
    whole = GrowingAudio(max_samples, reserve)
    try:
        for block in _bounded(reader.blocks(), max_samples, reader.channels_too_long):
            whole.append(block)
        samples = whole.joined()
    finally:
        whole.clear()  # an error's traceback would keep it
    return Decoded(samples, samples.shape[-1] / SAMPLE_RATE_HZ, reader.source)


def _gathered(blocks: Iterator[Block], block_s: float) -> Iterator[Block]:
    """Join a codec's frames, of some 20 ms each, into blocks: resampling costs a call, not a sample."""
    waiting: list[Audio] = []
    n_samples = rate_hz = n_channels = 0
    for block in blocks:
        if waiting and (rate_hz, n_channels) != (block.rate_hz, block.samples.shape[0]):
            yield Block(np.concatenate(waiting, axis=1), rate_hz)
            waiting, n_samples = [], 0
        rate_hz, n_channels = block.rate_hz, block.samples.shape[0]
        waiting.append(block.samples)
        n_samples += block.samples.shape[1]
        if n_samples >= block_s * rate_hz:
            yield Block(np.concatenate(waiting, axis=1), rate_hz)
            waiting, n_samples = [], 0
    if waiting:
        yield Block(np.concatenate(waiting, axis=1), rate_hz)


def _bounded(blocks: Iterator[Audio], max_samples: int, refusal: Callable[[], InvalidInput]) -> Iterator[Audio]:
    """Yield the same blocks, with a bound on the samples of all channels together."""
    n_samples = 0
    for block in blocks:
        n_samples += block.size
        if n_samples > max_samples:
            raise refusal()
        yield block
