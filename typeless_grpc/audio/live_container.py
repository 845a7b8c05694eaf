"""Containers that are decoded while they arrive, each in a thread of its own; see `arriving.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

from typeless_grpc.audio.arriving import decode_arriving
from typeless_grpc.audio.containers import DecodeCancelled
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.errors import InvalidInput

AUDIO_FIELD = "audio"  # the field of a stream's requests that has its bytes


def of_the_stream(error: InvalidInput, field: str) -> InvalidInput:
    """Move an error of a recording's content to the field that has a stream's bytes. field: of its format."""
    return error.moved(lambda one: AUDIO_FIELD if one == f"{field}.content" else one)


class LiveReader(Protocol):
    """Decodes one stream to mono samples at 16 kHz. Raises InvalidInput with AUDIO_… reasons."""

    def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """Return the audio that these bytes complete, in blocks of a few seconds at most."""
        ...

    def finish(self) -> AsyncIterator[Audio]:
        """Return the rest of the audio, after the last byte."""
        ...

    def close(self) -> None:
        """Free everything; may be called at any time, and twice."""
        ...

    @property
    def declared_s(self) -> float | None:
        """The length of the audio in its header, None if unknown."""
        ...


class OpenLiveContainer(Protocol):
    """Makes the reader of a container; arguments as `live.live_reader` has them."""

    def __call__(self, format: AudioFormat, *, field: str, is_live: bool) -> LiveReader: ...


class ContainerLiveReader:
    """A file that is decoded while it arrives; belongs to the event loop that feeds it."""

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool) -> None:
        self._format, self._field, self._is_live = format, field, is_live
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._turn = threading.Semaphore(0)  # released once for each step that the thread may take
        self._step: asyncio.Future[Audio | _Need | _End | BaseException] | None = None
        self._data = bytearray()  # fed, and not taken by the thread yet
        self._closed = self._ended = self._has_ended_input = False
        self.declared_s: float | None = None

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`. Bytes after the end of the container are ignored."""
        if self._ended or not data:
            return
        self._data += data
        async for block in self._steps():
            yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        self._has_ended_input = True
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

    def more(self) -> bytes:
        """See `Feeder`."""
        while not self._data and not self._has_ended_input:
            self._hand_over(_Need())
            self._wait()
        data = bytes(self._data)
        self._data.clear()
        return data

    def opened(self, declared_s: float | None) -> None:
        """See `Feeder`."""
        self.declared_s = declared_s

    def take(self, samples: Audio) -> None:
        """See `Feeder`."""
        self._hand_over(samples)
        self._wait()

    def is_cancelled(self) -> bool:
        """See `Feeder`."""
        return self._closed

    def _run(self) -> None:
        """Decode in a thread of its own; the last thing in the queue is the end or what failed."""
        last: _End | BaseException = _End()
        try:
            self._wait()
            decode_arriving(self, self._format, field=self._field, is_live=self._is_live)
        except DecodeCancelled:
            return
        except InvalidInput as error:
            last = of_the_stream(error, self._field)
        except BaseException as error:
            last = error
        with suppress(DecodeCancelled):
            self._hand_over(last)

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
