"""Audio that is decoded while it arrives: bytes in, in any pieces; samples out as soon as the bytes allow.

Raw samples are read where they stand, also those of most WAV files (`wav.py`). Any other container needs a decoder
that pulls its bytes from a file, so each has a thread of its own, which runs only while its stream waits for it: given
bytes, it decodes until it asks for more, and hands over what it has. Nothing runs ahead, so memory is bounded by the
piece that was fed, and what comes out does not depend on how the bytes were cut.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from typing import BinaryIO, Protocol, cast

import numpy as np

from typeless_grpc.audio.containers import ContainerReader, DecodeCancelled
from typeless_grpc.audio.converter import Converter
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.pcm import PcmReader
from typeless_grpc.audio.wav import NotForUs, WavHeader, WavParser
from typeless_grpc.errors import InvalidInput

_RAW_PIECE_BYTES = 1 << 16  # fed to the reader at once; at most 8 s of audio (8 kHz, one byte a sample)
_BLOCK_SAMPLES = SAMPLE_RATE_HZ  # a container's blocks are not much longer

_AUDIO = "audio"  # the field of a stream's requests that has its bytes

# Decode with as little audio in hand as the format allows. ignore_length: of WAV, see `wav.py`.
_LIVE_OPTIONS = {"probesize": "8192", "analyzeduration": "100000", "ignore_length": "1"}


class LiveReader(Protocol):
    """One stream's way from bytes to mono samples at 16 kHz. Raises InvalidInput with AUDIO_… reasons."""

    def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """The audio that these bytes complete, in blocks of a few seconds at most."""
        ...

    def finish(self) -> AsyncIterator[Audio]:
        """What is left once no byte follows."""
        ...

    def close(self) -> None:
        """Let go of everything; may be called at any time, and twice."""
        ...

    @property
    def declared_s(self) -> float | None:
        """How long the audio's header says it is; None where it does not."""
        ...


def live_reader(format: AudioFormat, *, field: str, is_live: bool = True) -> LiveReader:
    """The reader for a format. field: path of the message that holds `format`. Raises InvalidInput about it.

    is_live: samples are wanted as soon as their bytes are there; otherwise they may wait for a few seconds that follow.
    """
    format = format.validated(field)
    reader = RawLiveReader if format.is_raw else _SniffingReader
    return reader(format, field=field, is_live=is_live)


class _SniffingReader:
    """A container: WAV of the usual kinds is raw samples after its header, all else is FFmpeg's.

    Of WAV, files may follow one another, as they do in a recording (`decode.py`).
    """

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool) -> None:
        self._format, self._field, self._is_live = format, field, is_live
        self._wavs: WavParser | None = WavParser()
        self._reader: RawLiveReader | ContainerLiveReader | None = None
        self._raw_format: AudioFormat | None = None

    @property
    def declared_s(self) -> float | None:
        """See `LiveReader`."""
        return self._reader.declared_s if self._reader is not None else None

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        try:
            if self._wavs is not None:
                async for block in self._passed_on(self._wavs.feed(data)):
                    yield block
                return
        except NotForUs:
            data = self._left_to_ffmpeg()
        if self._reader is not None:
            async for block in self._reader.feed(data):
                yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        try:
            if self._wavs is not None:
                async for block in self._passed_on(self._wavs.finish()):
                    yield block
        except NotForUs:
            pass
        if self._reader is None and self._wavs is not None and self._wavs.waiting:
            head = self._left_to_ffmpeg()
            assert self._reader is not None
            async for block in self._reader.feed(head):
                yield block
        if self._reader is not None:
            async for block in self._reader.finish():
                yield block

    def close(self) -> None:
        """See `LiveReader`."""
        if self._reader is not None:
            self._reader.close()

    def _left_to_ffmpeg(self) -> bytes:
        assert self._wavs is not None
        head, self._wavs = bytes(self._wavs.waiting), None
        self._reader = ContainerLiveReader(self._format, field=self._field, is_live=self._is_live)
        return head

    async def _passed_on(self, items: Iterator[WavHeader | bytes]) -> AsyncIterator[Audio]:
        for item in items:
            data = item
            if isinstance(item, WavHeader):
                async for block in self._begun(item):
                    yield block
                data = b"" if item.format is not None else item.head
            assert self._reader is not None
            assert isinstance(data, bytes)
            async for block in self._reader.feed(data):
                yield block

    async def _begun(self, header: WavHeader) -> AsyncIterator[Audio]:
        """Choose the reader of the file that begins; what is left of the one before."""
        if header.format is not None:
            self._check_same(header.format)
        if isinstance(self._reader, RawLiveReader) and header.format == self._raw_format:
            self._reader.begin_anew()
            return
        if self._reader is not None:
            async for block in self._reader.finish():
                yield block
            self._reader.close()
        self._raw_format = header.format
        if header.format is None:
            self._reader = ContainerLiveReader(self._format, field=self._field, is_live=self._is_live)
        else:
            self._reader = RawLiveReader(header.format, field=self._field, is_live=self._is_live, may_end_anywhere=True)

    def _check_same(self, found: AudioFormat) -> None:
        for name, said, says in (
            ("sample_rate_hertz", self._format.sample_rate_hz, found.sample_rate_hz),
            ("channel_count", self._format.n_channels, found.n_channels),
        ):
            if said and said != says:
                why = f"{said} was said, the file says {says}; leave it out"
                raise InvalidInput(f"{self._field}.format.{name}", why)


class RawLiveReader:
    """Bare samples."""

    declared_s = None

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool, may_end_anywhere: bool = False) -> None:
        """may_end_anywhere: a part of a sample at the end is left out, and no error."""
        self._may_end_anywhere = may_end_anywhere
        self._reader = PcmReader(format, field=field, is_live=is_live, checks_encoding=not may_end_anywhere)
        self._field = field

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        for start in range(0, len(data), _RAW_PIECE_BYTES):
            try:
                block = self._reader.feed(data[start : start + _RAW_PIECE_BYTES])
            except InvalidInput as error:
                raise _said_of_the_stream(error, self._field) from error
            if len(block):
                yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`. Raises InvalidInput (AUDIO_TRUNCATED) where the bytes end within a sample."""
        if len(block := self._reader.flush()):
            yield block
        if (n_over := self._reader.n_pending_bytes) and not self._may_end_anywhere:
            ends = f"it ends {n_over} byte{'s' if n_over > 1 else ''} into a sample"
            raise InvalidInput(_AUDIO, ends, reason="AUDIO_TRUNCATED")

    def begin_anew(self) -> None:
        """What follows begins with a whole sample."""
        self._reader.begin_anew()

    def close(self) -> None:
        """See `LiveReader`."""


class ContainerLiveReader:
    """A file that is decoded while it arrives; belongs to the event loop that feeds it."""

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool) -> None:
        self._format, self._field, self._is_live = format, field, is_live
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._turn = threading.Semaphore(0)  # released once for each step that the thread may take
        self._step: asyncio.Future[Audio | _Need | _End | BaseException] | None = None
        self._pipe = _Pipe(self._starve)
        self._gathered: list[Audio] = []
        self._closed = self._ended = self._has_audio = False
        self.declared_s: float | None = None

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`. What follows the end of the container is ignored."""
        if self._ended or not data:
            return
        self._pipe.data += data
        async for block in self._steps():
            yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        self._pipe.ended = True
        if self._thread is None:
            return  # Not a byte came: silence, and no error.
        async for block in self._steps():
            yield block

    def close(self) -> None:
        """See `LiveReader`."""
        self._closed = True
        self._turn.release()

    async def _steps(self) -> AsyncIterator[Audio]:
        while not self._ended:
            match await self._next_step():
                case _Need():
                    return
                case _End():
                    self._ended = True
                case BaseException() as error:
                    self._ended = True
                    raise error
                case block:
                    yield block

    async def _next_step(self) -> Audio | _Need | _End | BaseException:
        self._step = self._loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="live decoder", daemon=True)
            self._thread.start()
        self._turn.release()
        return await self._step

    # ---- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last: _End | BaseException = _End()
        try:
            self._wait()
            self._decode()
        except DecodeCancelled:
            return
        except BaseException as error:
            last = self._explained(error)
        with suppress(DecodeCancelled):
            self._hand_over(last)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, InvalidInput) and self._pipe.head[4:8] == b"ftyp" and not self._has_audio:
            why = "an MP4 file whose index comes last cannot be decoded as it arrives: Transcribe takes it"
            return InvalidInput(_AUDIO, why, reason="AUDIO_UNDECODABLE")
        return _said_of_the_stream(error, self._field) if isinstance(error, InvalidInput) else error

    def _decode(self) -> None:
        # The pipe has what ContainerReader and PyAV use of a file.
        file = cast(BinaryIO, self._pipe)
        reader = ContainerReader(
            file, self._format, field=self._field, cancelled=lambda: self._closed, options=_LIVE_OPTIONS
        )
        with closing(reader):
            self.declared_s = reader.declared_s
            converter = Converter(is_live=self._is_live)
            for block in reader.blocks():
                self._gathered.append(converter.feed(block.samples, block.rate_hz))
                if sum(map(len, self._gathered)) >= _BLOCK_SAMPLES:
                    self._flush()
            self._gathered.append(converter.flush())
            self._flush()

    def _starve(self) -> None:
        """The decoder wants bytes that are not there: give what is ready, and wait for more."""
        self._flush()
        self._hand_over(_Need())
        self._wait()

    def _flush(self) -> None:
        block = np.concatenate(self._gathered) if self._gathered else np.zeros(0, dtype=np.float32)
        self._gathered = []
        if len(block):
            self._has_audio = True
            self._hand_over(block)
            self._wait()

    def _wait(self) -> None:
        self._turn.acquire()
        if self._closed:
            raise DecodeCancelled

    def _hand_over(self, item: Audio | _Need | _End | BaseException) -> None:
        step = self._step

        def deliver() -> None:
            if step is not None and not step.done():
                step.set_result(item)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError as error:  # the loop is closed: nobody waits any more
            raise DecodeCancelled from error


def _said_of_the_stream(error: InvalidInput, field: str) -> InvalidInput:
    """What is wrong with a recording's content is wrong with the bytes of a stream, which have another place."""
    return error.moved(lambda one: _AUDIO if one == f"{field}.content" else one)


class _Need:
    """The decoder has used every byte."""


class _End:
    """The decoder has come to the end of the file."""


class _Pipe:
    """A file that cannot seek, and whose reader waits where there are no bytes yet."""

    def __init__(self, starve: Callable[[], None]) -> None:
        """starve: returns once there are bytes, or once there will be none."""
        self.data = bytearray()
        self.head = b""  # the first bytes, as far as they were read
        self.ended = False
        self._starve = starve

    def read(self, n_bytes: int) -> bytes:
        while not self.data and not self.ended:
            self._starve()
        data = bytes(self.data[:n_bytes])
        del self.data[:n_bytes]
        self.head += data[: max(0, 16 - len(self.head))]
        return data

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("a stream cannot seek")

    tell = seek
