"""What the tests of durable streams need: servers that share a store, and a caller that resumes on the next server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.speech import fingerprint
from tests.unit.idle import steps
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import DecodeOptions, Lane
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers.stream_messages import StreamDefaults, UpdateMessages
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.durable_log import DurableDependencies
from typeless_grpc.streaming.durable_store import Batch, Lease
from typeless_grpc.streaming.durable_stream import DurableStream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Entry, Final, SpeechEnd, SpeechStart, Warned
from typeless_grpc.streaming.memory_sessions import MemorySessionStore
from typeless_grpc.streaming.requests import Request, Update

RAW = AudioFormat(Encoding.PCM_S16LE, 16_000)
DEFAULTS = StreamDefaults("tiny")
UPDATES = UpdateMessages(DEFAULTS)


def words(call: EngineCall) -> str:
    """A word for each half second, and what shows the audio and the options: "w0 w1 w2 4f3a en"."""
    known = " ".join(f"w{n}" for n in range(2 * len(call.audio) // 16_000))
    if call.ticket.lane is Lane.LIVE_INTERIM:
        return known
    return f"{known} {fingerprint(call.audio)} {call.options.language} {call.options.prompt}"


def update(prompt: str, *, is_file: bool = False, **fields: Any) -> Update:
    message = transcription_pb2.TranscriptionOptions(language="en", prompt=prompt, **fields)
    mode = b"F" if is_file else b"L"
    return UPDATES.decode(mode + message.SerializeToString())


@dataclass
class Caller:
    """Sends requests to one stream after the other, as the documentation says, and keeps the events."""

    requests: Sequence[Request]
    got: list[Entry]
    n_sent: int = 0

    @property
    def last_sequence(self) -> int:
        return max((entry.sequence for entry in self.got), default=0)

    def from_byte(self, acknowledged: int) -> list[Request]:
        """All requests from there on, the controls at that byte included."""
        at, left = 0, list[Request]()
        for request in self.requests:
            if isinstance(request, bytes):
                if at + len(request) > acknowledged:
                    left.append(request[max(0, acknowledged - at) :])
                at += len(request)
            elif at >= acknowledged:
                left.append(request)
        return left

    async def read(self, stream: Stream, limit: int | None = None) -> None:
        """Read events until the stream is over, or until so many more have come."""
        async for entry in stream.events_after(self.last_sequence):
            if not self.got or entry.sequence > self.last_sequence:
                self.got.append(entry)
            if limit is not None:
                limit -= 1
                if limit <= 0:
                    return

    def kept(self) -> dict[str, list[Any]]:
        """What must be the same, by kind: not sequences, nor what depends on the speed of the engine."""
        assert [entry.sequence for entry in self.got] == sorted({entry.sequence for entry in self.got})
        kinds: dict[str, list[Any]] = {"activity": [], "finals": [], "warnings": [], "completed": []}
        for entry in self.got:
            match entry.event:
                case SpeechStart() | SpeechEnd():
                    kinds["activity"].append(entry.event)
                case Final():
                    kinds["finals"].append(entry.event)
                case Warned(error):
                    kinds["warnings"].append((type(error), error.reason, error.message))
                case Completed():
                    kinds["completed"].append(replace(entry.event, processing_s=0.0, queue_s=0.0))
        return kinds


class UnreliableStore(MemorySessionStore):
    """Unavailable while is_unavailable."""

    is_unavailable = False

    def append(self, lease: Lease, batch: Batch) -> None:
        if self.is_unavailable:
            raise SourceUnavailable("It is unavailable.", reason="STORE_UNAVAILABLE")
        super().append(lease, batch)


@asynccontextmanager
async def servers(script: Any = words, part_bytes: int = 20_000, **given: Any) -> AsyncIterator[Servers]:
    with ThreadPoolExecutor(2) as threads:
        one = Servers(threads, script, part_bytes, given)
        try:
            yield one
        finally:
            for stream in one.streams:
                await stream.close()


class Servers:
    """Makes streams of one session, each as on a server of its own."""

    def __init__(self, threads: ThreadPoolExecutor, script: Any, part_bytes: int, given: dict[str, Any]) -> None:
        self.store = UnreliableStore()
        self.threads, self._script, self._part_bytes = threads, script, part_bytes
        self._format = given.pop("format", RAW)
        self.options = StreamOptions(
            **{"options": DecodeOptions(language="en"), "segmentation": EndpointOptions()} | given
        )
        self.streams: list[Stream] = []
        self.engines: list[ScriptedEngine] = []
        self.clock = FakeClock()

    def _dependencies(self) -> Dependencies:
        clock = self.clock = FakeClock(100.0)

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)

        self.engines.append(ScriptedEngine(self._script))
        return Dependencies(self.engines[-1], LoudnessDetector(), self.threads, clock, sleep=sleep)

    def _reader(self) -> Any:
        return live_reader(self._format, field="config", is_live=isinstance(self.options.segmentation, EndpointOptions))

    @property
    def durable(self) -> DurableDependencies:
        return DurableDependencies(self.store, self.threads, UPDATES, every_s=0.01, part_bytes=self._part_bytes)

    def _kept(self, stream: Any) -> Any:
        self.streams.append(stream)
        return stream

    def plain(self) -> Stream:
        stream = self._kept(Stream(self._dependencies(), self._reader(), self.options))
        stream.attach()
        return stream

    def first(self) -> DurableStream:
        lease = self.store.create("s", "me", b"")
        stream = self._kept(DurableStream(self._dependencies(), self._reader(), self.options, self.durable, lease))
        stream.start()
        stream.attach()
        return stream

    async def next(self, after: int) -> DurableStream:
        stored = self.store.take("s", "me")
        assert stored is not None
        made = DurableStream(self._dependencies(), self._reader(), self.options, self.durable, stored.lease)
        stream = self._kept(made)
        await stream.restore(stored, after)
        stream.attach()
        return stream


async def uninterrupted(on: Servers, requests: Sequence[Request]) -> dict[str, list[Any]]:
    caller = Caller(requests, [])
    stream = on.plain()
    for request in requests:
        await stream.put(request)
    await caller.read(stream)
    return caller.kept()


async def interrupted(
    on: Servers, requests: Sequence[Request], kills: Sequence[tuple[int, int, bool]]
) -> dict[str, list[Any]]:
    """kills: after so many requests, and so many steps of the event loop; and whether the caller had read all."""
    caller = Caller(requests, [])
    stream: DurableStream = on.first()
    for n_requests, n_steps, has_read in kills:
        reading = asyncio.create_task(caller.read(stream))
        sent = asyncio.create_task(send(stream, caller.from_byte(stream.acknowledged_bytes)[:n_requests]))
        await steps(n_steps)
        if has_read:
            await asyncio.wait([sent], timeout=1.0)
            await asyncio.sleep(0.02)
        for task in (sent, reading):
            task.cancel()
        await asyncio.wait([sent, reading])
        stream = await on.next(caller.last_sequence)  # the old one is alive, and may not disturb
    sending = asyncio.create_task(send(stream, caller.from_byte(stream.acknowledged_bytes)))
    async with asyncio.timeout(20):
        await caller.read(stream)
    await sending
    return caller.kept()


async def send(stream: Stream, requests: Sequence[Request]) -> None:
    for request in requests:
        await stream.put(request)
