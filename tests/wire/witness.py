"""A well-behaved caller, in a process of its own: unary calls, a live stream and new connections, all the time.

It checks each answer and how long it took.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import request
from tests.speech import tone
from tests.wire.node import WITNESS
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2, transcription_pb2_grpc
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest

KEY = (("x-api-key", WITNESS),)
PAUSE_S = 0.1
AUDIO_S = 0.5
PATIENCE_S = 30.0  # of one answer
RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
FINALIZE = StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_FINALIZE)
END = StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_END)
# Otherwise all channels of a process to a server share one connection.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Testimony:
    """How long each answer took, in seconds, by its kind; and what was wrong."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def longest_s(self) -> float:
        return max((max(seconds) for seconds in self.latencies_s.values()), default=0.0)

    def median_s(self, kind: str) -> float:
        seconds = sorted(self.latencies_s.get(kind, [0.0]))
        return seconds[len(seconds) // 2]


def run(port: int, control: Connection) -> None:
    """Testify of each period: control receives any message to begin one, and any other to end it."""
    asyncio.run(_run(port, control))


async def _run(port: int, control: Connection) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN_CONNECTION) as channel:
        await channel.channel_ready()
        control.send("ready")
        while await asyncio.to_thread(_has_message, control):
            testimony, over = Testimony(), asyncio.Event()
            watching = asyncio.create_task(_all_kinds(channel, port, testimony, over))
            await asyncio.to_thread(_has_message, control)
            over.set()
            await watching
            gc.collect()  # closed channels keep their connections until then
            control.send(testimony)


def _has_message(control: Connection) -> bool:
    try:
        control.recv()
    except EOFError:
        return False
    return True


async def _all_kinds(channel: grpc.aio.Channel, port: int, testimony: Testimony, over: asyncio.Event) -> None:
    stub = transcription_pb2_grpc.TranscriptionServiceStub(channel)
    sent = request(AUDIO_S)

    async def unary() -> None:
        answer = await stub.Transcribe(sent, metadata=KEY, timeout=PATIENCE_S)
        expect(answer.transcript.text, f"{AUDIO_S} seconds")

    async def newcomer() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN_CONNECTION) as own:
            answer = await health_pb2_grpc.HealthStub(own).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            expect(answer.status, health_pb2.HealthCheckResponse.SERVING)

    await asyncio.gather(
        _repeated("unary", unary, testimony, over),
        _repeated("newcomer", newcomer, testimony, over),
        _live(stub, testimony, over),
    )


async def _repeated(kind: str, call: Callable[[], Awaitable[None]], testimony: Testimony, over: asyncio.Event) -> None:
    while not over.is_set():
        await _timed(kind, call, testimony)
        await asyncio.sleep(PAUSE_S)


async def _timed(kind: str, call: Callable[[], Awaitable[None]], testimony: Testimony) -> bool:
    began_s = time.monotonic()
    try:
        await call()
    except (grpc.aio.AioRpcError, AssertionError, TimeoutError) as error:
        testimony.complaints.append(f"{kind}: {error!r}")
        return False
    testimony.latencies_s.setdefault(kind, []).append(time.monotonic() - began_s)
    return True


async def _live(
    stub: transcription_pb2_grpc.TranscriptionServiceStub, testimony: Testimony, over: asyncio.Event
) -> None:
    """One stream for the whole time: each utterance is ended by FINALIZE, and its final is waited for."""
    call = stub.StreamTranscribe(metadata=KEY)
    utterance = tone(AUDIO_S)

    async def final() -> None:
        await call.write(StreamTranscribeRequest(audio=utterance))
        await call.write(FINALIZE)
        async with asyncio.timeout(PATIENCE_S):
            while not (answer := await _event(call)).HasField("segment"):
                pass
        expect(answer.segment.text, f"{AUDIO_S} seconds")

    async def completed() -> None:
        await call.write(END)
        async with asyncio.timeout(PATIENCE_S):
            while not (await _event(call)).HasField("completed"):
                pass
            expect(await call.read(), grpc.aio.EOF)

    await call.write(StreamTranscribeRequest(config=transcription_pb2.StreamConfig(format=RAW)))
    while not over.is_set():
        if not await _timed("live", final, testimony):
            return
        await asyncio.sleep(PAUSE_S)
    await _timed("completed", completed, testimony)


async def _event(call: grpc.aio.StreamStreamCall) -> transcription_pb2.StreamTranscribeResponse:
    answer = await call.read()
    if not isinstance(answer, transcription_pb2.StreamTranscribeResponse):
        raise AssertionError(f"the stream ended: {await call.code()}, {await call.details()}")
    return answer


def expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise AssertionError(f"{got!r} instead of {wanted!r}")
