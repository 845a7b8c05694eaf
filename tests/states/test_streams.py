"""A stream whose calls come and go, on servers that share a store, under seeded schedules: nothing is lost or twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from tests.service.streams import config
from tests.speech import cut, silence, speech
from tests.states.machines import factor
from tests.states.seeded import explore, schedule
from tests.unit.streaming.durable_bench import DEFAULTS, UPDATES, words
from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import SourceUnavailable, TypelessError
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.pb.v1.transcription_pb2 import (
    STREAM_CONTROL_END,
    StreamConfig,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)
from typeless_grpc.servicers.streaming import StreamLimits, StreamService
from typeless_grpc.streaming import durable_stream
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.durable_inbox import DurableInbox
from typeless_grpc.streaming.durable_log import DurableDependencies
from typeless_grpc.streaming.durable_store import Batch, Lease, StoredSession
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.memory_sessions import MemorySessionStore
from typeless_grpc.streaming.requests import Request
from typeless_grpc.streaming.resume import SessionLimits, Sessions

N_SCHEDULES = 40
AUDIO = silence(0.3) + speech(0.7, 1.0, 1.2, 0.9, 0.5, 1.1, 0.8, 0.4)
PARTS = (4_000, 60_000)  # bytes that are stored at a time
WINDOW_S = 60.0
RETRIED = {"UNAVAILABLE", "STORE_UNAVAILABLE", "DRAINING", "SESSION_TAKEN", "OVERLOADED"}


class SlowEngine(ScriptedEngine):
    """Takes as long as the schedule says."""

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        await asyncio.sleep(schedule().random.choice((0.0, 0.01, 0.3, 2.0)))
        return await super().transcribe(audio, options, ticket)


class FlakyStore(MemorySessionStore):
    """Fails at times, before or after it has done what it should."""

    fails = 0.1

    def append(self, lease: Lease, batch: Batch) -> None:
        self._fail_at_times()
        super().append(lease, batch)
        self._fail_at_times()

    def take(self, session_id: str, owner: str) -> StoredSession | None:
        self._fail_at_times()
        return super().take(session_id, owner)

    def _fail_at_times(self) -> None:
        if schedule().random.random() < self.fails:
            raise SourceUnavailable("It is unavailable.", reason="STORE_UNAVAILABLE")


class LosesWrites(FlakyStore):
    def append(self, lease: Lease, batch: Batch) -> None:
        if schedule().random.random() > self.fails:
            super().append(lease, batch)


class ForgetsLeases(FlakyStore):
    """Takes the writes of a server that has lost the session."""

    def append(self, lease: Lease, batch: Batch) -> None:
        super().append(Lease(lease.session_id, self._rows[lease.session_id].token), batch)


class AcknowledgesTooEarly(DurableInbox):
    """Acknowledges audio that is not stored."""

    def put(self, request: Request) -> None:
        super().put(request)
        if isinstance(request, bytes):
            self.acknowledged_bytes += len(request)


class Server:
    def __init__(self, store: MemorySessionStore) -> None:
        clock, threads = schedule(), None  # work of threads runs in the loop
        dependencies: Any = Dependencies(SlowEngine(words), LoudnessDetector(), threads, clock)
        durable: Any = DurableDependencies(store, threads, UPDATES, every_s=0.5, part_bytes=clock.random.choice(PARTS))
        limits = StreamLimits(StreamOptions(DecodeOptions(), EndpointOptions()), WINDOW_S)
        self.sessions: Sessions[Any] = Sessions(SessionLimits(WINDOW_S), clock)
        self.service = StreamService(dependencies, self.sessions, DEFAULTS, limits, code_of, durable)
        self._ticking = asyncio.create_task(self.sessions.run(), name="ticks")

    async def close(self) -> None:
        self._ticking.cancel()
        await self.sessions.close()


class Caller:
    """Sends audio, and resumes as the contract says. It checks that events come once, in order."""

    def __init__(self) -> None:
        self.session_id, self.last, self.acknowledged = "", 0, 0
        self.got: list[StreamTranscribeResponse] = []

    @property
    def is_complete(self) -> bool:
        return bool(self.got) and self.got[-1].HasField("completed")

    def transcript(self) -> dict[str, list[Any]]:
        """What must be the same in every schedule, by kind."""
        kept: dict[str, list[Any]] = {"segments": [], "activity": [], "completed": []}
        for message in self.got:
            match message.WhichOneof("event"):
                case "segment":
                    kept["segments"].append(message.segment)
                case "speech_activity":
                    kept["activity"].append(message.speech_activity)
                case "completed":
                    kept["completed"].append((message.completed.transcript, message.acknowledged_bytes))
        return kept


class Connection:
    """One call. is_broken: what the server still sends does not arrive."""

    def __init__(self, caller: Caller, server: Server) -> None:
        self._caller, self._server = caller, server
        self.is_broken = False
        self._start: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._call(), name="call")

    async def _requests(self) -> AsyncIterator[StreamTranscribeRequest]:
        caller, random = self._caller, schedule().random
        if caller.session_id:
            resume = StreamConfig(resume_session_id=caller.session_id, resume_after_sequence=caller.last)
            yield StreamTranscribeRequest(config=resume)
        else:
            yield config()
            self._start.set_result(0)
        for payload in cut(AUDIO[await self._start :], [random.choice((1_600, 3_201, 20_000))]):
            yield StreamTranscribeRequest(audio=payload)
            await asyncio.sleep(random.choice((0.0, 0.001, 0.1)))
        yield StreamTranscribeRequest(control=STREAM_CONTROL_END)

    async def _call(self) -> None:
        async with aclosing(self._server.service.responses(self._requests())) as responses:
            async for message in responses:
                await asyncio.sleep(schedule().random.choice((0.0, 0.0, 0.01)))  # on its way
                if not self.is_broken:
                    self._take(message)

    def _take(self, message: StreamTranscribeResponse) -> None:
        caller = self._caller
        assert message.acknowledged_bytes >= caller.acknowledged, "what was acknowledged stays so"
        caller.acknowledged = message.acknowledged_bytes
        if message.HasField("started"):
            caller.session_id = message.started.session_id
            if message.started.resumed:
                self._start.set_result(message.acknowledged_bytes)
        if message.sequence:
            assert message.sequence == caller.last + 1, "each event comes once, in order"
            caller.last = message.sequence
            caller.got.append(message)


async def uninterrupted() -> dict[str, list[Any]]:
    store = FlakyStore()
    store.fails = 0.0
    server, caller = Server(store), Caller()
    await Connection(caller, server).task
    await server.close()
    return caller.transcript()


async def calls_come_and_go(make_store: Callable[[], MemorySessionStore] = FlakyStore) -> None:
    loop, store, caller = schedule(), make_store(), Caller()
    expected = await uninterrupted()
    servers = [Server(store), Server(store)]
    connections: list[Connection] = []
    for _ in range(loop.random.randrange(1, 8)):
        connections.append(Connection(caller, loop.random.choice(servers)))
        await asyncio.wait([connections[-1].task], timeout=loop.random.expovariate(1.0))
        connections[-1].is_broken = True
        loop.call_later(loop.random.choice((0.0, 0.0, 0.1, 2.0)), connections[-1].task.cancel)
        if loop.random.random() < 0.2:
            stopping = loop.random.randrange(len(servers))
            servers[stopping].service.draining()
            servers.append(servers[stopping])  # until the end of the test, without calls
            servers[stopping] = Server(store)
            del servers[2:-1]
    for _ in range(30):
        if caller.is_complete:
            break
        connections.append(Connection(caller, loop.random.choice(servers[:2])))
        await asyncio.wait([connections[-1].task])
        error = connections[-1].task.exception()
        if isinstance(error, TypelessError) and error.reason in RETRIED:
            await asyncio.sleep(1.0)
        elif error is not None:
            raise error
    await asyncio.gather(*(one.task for one in connections), return_exceptions=True)
    for server in servers:
        await server.close()
    assert caller.transcript() == expected


def test_a_stream_has_its_finals_once_whatever_happens_to_its_calls_and_servers():
    explore(calls_come_and_go, N_SCHEDULES * factor())


@pytest.mark.parametrize("fault", [LosesWrites, ForgetsLeases])
def test_a_planted_fault_of_the_store_is_found(fault: type[FlakyStore]):
    with pytest.raises(Exception) as caught:
        explore(partial(calls_come_and_go, fault), range(N_SCHEDULES))
    assert "SCHEDULE_SEED" in caught.value.__notes__[0]


def test_it_is_found_if_audio_is_acknowledged_too_early(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(durable_stream, "DurableInbox", AcknowledgesTooEarly)
    with pytest.raises(AssertionError):
        explore(calls_come_and_go, range(N_SCHEDULES))
