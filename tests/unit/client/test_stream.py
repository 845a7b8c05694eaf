from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc.aio

from tests.unit.idle import until_idle
from typeless_grpc.client.options import StreamOptions
from typeless_grpc.client.stream import AsyncStreaming
from typeless_grpc.pb.v1.transcription_pb2 import (
    StreamCompleted,
    StreamProgress,
    StreamStarted,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)


class Eager:
    """A call whose server acknowledges each block so fast that its event is read before the write returns."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._n_events = self._n_read = 0

    async def write(self, request: StreamTranscribeRequest) -> None:
        match request.WhichOneof("request"):
            case "config":
                self._emit(started=StreamStarted(session_id="session"))
            case "audio":
                self.received.append(request.audio)
                self._emit(progress=StreamProgress())
                await self._events.join()

    async def read(self) -> Any:
        if self._n_read:
            self._events.task_done()  # the reader has processed the event before
        self._n_read += 1
        return await self._events.get()

    async def done_writing(self) -> None:
        self._emit(completed=StreamCompleted())
        self._events.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        """Nothing to do."""

    def _emit(self, **event: Any) -> None:
        self._n_events += 1
        n_bytes = sum(map(len, self.received))
        self._events.put_nowait(StreamTranscribeResponse(sequence=self._n_events, acknowledged_bytes=n_bytes, **event))


class Hesitant(Eager):
    """A call whose server accepts the stream only when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_opened = asyncio.Event()
        self.may_start = asyncio.Event()

    async def write(self, request: StreamTranscribeRequest) -> None:
        self.is_opened.set()
        if request.WhichOneof("request") == "config":
            asyncio.get_running_loop().create_task(self._start(request))
        else:
            await super().write(request)

    async def _start(self, request: StreamTranscribeRequest) -> None:
        await self.may_start.wait()
        await super().write(request)


class EagerServer:
    def __init__(self, call: Eager | None = None) -> None:
        self.call = call or Eager()

    def StreamTranscribe(self, metadata: object) -> Eager:
        return self.call

    async def connect(self) -> Any:
        return self


async def test_no_audio_is_sent_before_the_server_has_taken_the_stream():
    call = Hesitant()
    events = AsyncStreaming(EagerServer(call).connect, StreamOptions()).events([b"one"])
    first = asyncio.ensure_future(anext(events))
    await call.is_opened.wait()
    await until_idle()
    assert call.received == []
    call.may_start.set()
    kinds = [(await first).WhichOneof("event"), *[event.WhichOneof("event") async for event in events]]
    assert call.received == [b"one"]
    assert kinds == ["started", "progress", "completed"]


async def test_an_early_acknowledgement_does_not_hide_the_next_block():
    server = EagerServer()
    blocks = [bytes([n]) * 4 for n in range(20)]
    events = AsyncStreaming(server.connect, StreamOptions()).events(blocks)
    kinds = [event.WhichOneof("event") async for event in events]
    assert server.call.received == blocks
    assert kinds == ["started", *["progress"] * len(blocks), "completed"]


async def test_an_iterator_that_blocks_does_not_block_the_event_loop():
    may_end = threading.Event()

    def source() -> Iterator[bytes]:
        yield b"one"
        assert may_end.wait(10)

    server = EagerServer()
    async with contextlib.aclosing(AsyncStreaming(server.connect, StreamOptions()).events(source())) as events:
        kinds = [(await anext(events)).WhichOneof("event") for _ in range(2)]
        may_end.set()
        kinds += [event.WhichOneof("event") async for event in events]
    assert (kinds, server.call.received) == (["started", "progress", "completed"], [b"one"])


async def test_closing_a_stream_closes_the_iterator_of_its_audio():
    is_closed = threading.Event()

    def source() -> Iterator[bytes]:
        try:
            while True:
                yield b"one"
        finally:
            is_closed.set()

    events = AsyncStreaming(EagerServer().connect, StreamOptions()).events(source())
    await anext(events)
    await events.aclose()
    assert await asyncio.to_thread(is_closed.wait, 5)
