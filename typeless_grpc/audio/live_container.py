"""Containers that are decoded while they arrive.

FFmpeg pulls bytes from a file, so each container has a thread of its own. It runs only while its stream waits for it:
given bytes, it decodes until it needs more, and hands over what it has. Nothing runs ahead, so memory is bounded by the
data that was fed, and the result does not depend on how the bytes were cut.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from typing import BinaryIO, cast

import numpy as np

from typeless_grpc.audio.containers import ContainerReader, DecodeCancelled
from typeless_grpc.audio.converter import Converter
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.errors import InvalidInput

AUDIO_FIELD = "audio"  # the field of a stream's requests that has its bytes
_BLOCK_SAMPLES = SAMPLE_RATE_HZ  # blocks are not much longer

# Decode with as little audio in hand as the format allows. ignore_length: of WAV, see `wav.py`.
_LIVE_OPTIONS = {"probesize": "8192", "analyzeduration": "100000", "ignore_length": "1"}


def of_the_stream(error: InvalidInput, field: str) -> InvalidInput:
    """Move an error of a recording's content to the field that has a stream's bytes. field: of its format."""
    return error.moved(lambda one: AUDIO_FIELD if one == f"{field}.content" else one)


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
        """See `LiveReader`. Bytes after the end of the container are ignored."""
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
            return InvalidInput(AUDIO_FIELD, why, reason="AUDIO_UNDECODABLE")
        return of_the_stream(error, self._field) if isinstance(error, InvalidInput) else error

    def _decode(self) -> None:
        # The pipe has the methods of a file that ContainerReader and PyAV use.
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
        """Hand over the audio that is ready, and wait for more bytes."""
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
