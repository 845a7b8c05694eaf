from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from typeless_grpc.client import AsyncClient, Client, RawFormat, StreamOptions
from typeless_grpc.client import silence as silence_module
from typeless_grpc.client import stream as stream_module
from typeless_grpc.client.silence import LOST_AFTER_S, PROBE_AFTER_S, SilenceMonitor
from typeless_grpc.pb.v1.transcription_pb2 import (
    StreamCompleted,
    StreamConfigured,
    StreamStarted,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)
from typeless_grpc.pb.v1.transcription_pb2_grpc import (
    TranscriptionServiceServicer,
    add_TranscriptionServiceServicer_to_server,
)

OPTIONS = StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000))
AUDIO = StreamTranscribeRequest(audio=b"..")
N_BLOCKS = 40


class Monitored:
    """A monitor and its clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.monitor = SilenceMonitor(OPTIONS, lambda: self.now_s)

    def after(self, seconds: float) -> tuple[bool, bool]:
        self.now_s += seconds
        return self.monitor.take_probe(), self.monitor.is_lost


def test_a_server_is_probed_once_and_then_given_up():
    one = Monitored()
    one.monitor.reads()
    one.monitor.sent(AUDIO)
    assert one.after(PROBE_AFTER_S - 1) == (False, False)
    one.monitor.sent(AUDIO)  # more audio does not start the wait again
    assert one.after(1) == (True, False)
    assert one.after(LOST_AFTER_S - PROBE_AFTER_S - 1) == (False, False)
    assert one.after(1) == (False, True)
    one.monitor.received()
    assert one.after(LOST_AFTER_S) == (False, False)


def test_neither_a_caller_that_sends_nothing_nor_one_that_reads_nothing_waits_for_the_server():
    one = Monitored()
    one.monitor.reads()
    assert one.after(LOST_AFTER_S) == (False, False)
    one.monitor.sent(AUDIO)
    one.monitor.received()
    one.monitor.sent(AUDIO)
    assert one.after(LOST_AFTER_S) == (False, False)
    one.monitor.reads()
    assert one.after(PROBE_AFTER_S) == (True, False)


class Servicer(TranscriptionServiceServicer):
    """Its connection is open and answers pings. calls: what each call received, after the configuration."""

    def __init__(self, *, is_lost: bool) -> None:
        self._is_lost = is_lost
        self.calls: list[list[StreamTranscribeRequest]] = []

    async def StreamTranscribe(  # type: ignore[override]
        self, requests: AsyncIterator[StreamTranscribeRequest], context: object
    ) -> AsyncIterator[StreamTranscribeResponse]:
        opening = await anext(aiter(requests))
        received: list[StreamTranscribeRequest] = []
        self.calls.append(received)
        is_resumed = bool(opening.config.resume_session_id)
        started = StreamStarted(session_id="one", resumed=is_resumed, resume_window=Duration(seconds=60))
        yield StreamTranscribeResponse(sequence=0 if is_resumed else 1, started=started)
        sequence = 1
        async for request in requests:
            received.append(request)
            if request.HasField("update") and not self._is_lost:
                sequence += 1
                yield StreamTranscribeResponse(sequence=sequence, configured=StreamConfigured())
        if self._is_lost and not is_resumed:
            await asyncio.sleep(60)
        n_bytes = sum(len(request.audio) for request in received)
        yield StreamTranscribeResponse(
            sequence=sequence + 1, acknowledged_bytes=n_bytes, completed=StreamCompleted(end_reason=1)
        )


@asynccontextmanager
async def serving(servicer: Servicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_TranscriptionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence_module, "PROBE_AFTER_S", 0.4)
    monkeypatch.setattr(stream_module, "CHECK_EVERY_S", 0.05)


def blocks() -> Iterator[bytes]:
    for n in range(N_BLOCKS):
        yield bytes([n]) * 640
        time.sleep(0.05)


def kinds_in_threads(target: str) -> list[Any]:
    with Client(target) as client:
        return [event.WhichOneof("event") for event in client.stream(blocks(), OPTIONS)]


async def kinds(target: str, shell: str) -> list[Any]:
    if shell == "threads":
        return await asyncio.to_thread(kinds_in_threads, target)
    async with AsyncClient(target) as client:
        return [event.WhichOneof("event") async for event in client.stream(blocks(), OPTIONS)]


def audio(requests: list[StreamTranscribeRequest]) -> bytes:
    return b"".join(request.audio for request in requests)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("shell", ["asyncio", "threads"])
async def test_a_session_leaves_a_server_that_does_not_answer(shell: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(silence_module, "LOST_AFTER_S", 1.0)
    servicer = Servicer(is_lost=True)
    async with serving(servicer) as target:
        assert await kinds(target, shell) == ["started", "completed"]
    lost, resumed = servicer.calls
    assert [request for request in lost if request.HasField("update")]
    assert audio(resumed) == b"".join(bytes([n]) * 640 for n in range(N_BLOCKS))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("shell", ["asyncio", "threads"])
async def test_a_server_that_answers_keeps_the_session_and_its_answers_are_not_shown(shell: str):
    servicer = Servicer(is_lost=False)
    async with serving(servicer) as target:
        assert await kinds(target, shell) == ["started", "completed"]
    (only,) = servicer.calls
    assert len([request for request in only if request.HasField("update")]) >= 2
