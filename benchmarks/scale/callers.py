"""The callers of the simulation: each sends speech at its pace, over a connection of its own.

The process reads a `Plan` as JSON from its standard input, and prints `Found` as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from benchmarks.scale.engine import times_of
from benchmarks.sessions import samples
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.streaming.endpoint import EndpointOptions

MESSAGE_S = 0.1
BYTES_PER_S = 2 * SAMPLE_RATE_HZ
FORMAT = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=SAMPLE_RATE_HZ)
UNARY = "/typeless.v1.TranscriptionService/Transcribe"
METHOD = "/typeless.v1.TranscriptionService/StreamTranscribe"
# From the end of speech to the end of the frame that makes it an endpoint, for text of high confidence.
_ENDPOINTS = EndpointOptions()
_SILENCE_S = math.ceil(_ENDPOINTS.end_silence_s * SAMPLE_RATE_HZ / FRAME_SAMPLES) * FRAME_SAMPLES / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Plan:
    """targets, keys: for the streams in turn. slowdown: seconds in which a second of audio is sent.

    ramp_s, steady_s: to open all streams, and to measure then. ca: the authority's certificate; "" without TLS.
    call_audio_s: of unary calls, which n_streams callers make one after another instead; 0 for streams.
    """

    targets: Sequence[str]
    keys: Sequence[str]
    n_streams: int
    slowdown: float
    ramp_s: float
    steady_s: float
    interims: bool
    ca: str = ""
    call_audio_s: float = 0.0


@dataclass
class Found:
    """Seconds of everything but the engine, for finals and first events of interims, while all streams were open.

    late_s: by how much messages left later than planned, so whether this process kept up. errors: texts.
    """

    finals_s: list[float] = field(default_factory=list)
    interims_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    n_messages: int = 0
    n_events: int = 0
    n_unmatched: int = 0
    n_finals: int = 0
    n_calls: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    cpu_s: float = 0.0
    errors: list[str] = field(default_factory=list)


class Caller:
    """One stream."""

    def __init__(self, plan: Plan, number: int, speech: bytes, found: Found) -> None:
        self._plan, self._number, self._found = plan, number, found
        start = random.Random(number).randrange(len(speech) // 2) * 2
        self._speech = speech[start:] + speech[:start]
        self._sent_s: list[float] = []
        self.is_measured = False

    async def run(self, stop: asyncio.Event) -> None:
        """Stream until told to stop; then end the audio and read the rest."""
        plan = self._plan
        target = plan.targets[self._number % len(plan.targets)]
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as a caller on another machine
        if plan.ca:
            credentials = grpc.ssl_channel_credentials(plan.ca.encode())
            channel = grpc.aio.secure_channel(target, credentials, options=options)
        else:
            channel = grpc.aio.insecure_channel(target, options=options)
        key = plan.keys[self._number % len(plan.keys)]
        async with channel:
            if plan.call_audio_s:
                await self._call(channel, key, stop)
                return
            call = channel.stream_stream(METHOD)(metadata=(("x-api-key", key),))
            reading = asyncio.create_task(self._read(call))
            try:
                await self._write(call, stop)
                await asyncio.wait_for(reading, 30 * plan.slowdown)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
                self._found.errors.append(f"{type(error).__name__}: {error}")
            finally:
                reading.cancel()

    async def _call(self, channel: grpc.aio.Channel, key: str, stop: asyncio.Event) -> None:
        data = self._speech[: round(self._plan.call_audio_s * SAMPLE_RATE_HZ) * 2]
        request = transcription_pb2.TranscribeRequest(
            audio=audio_pb2.AudioSource(content=data, format=FORMAT),
            options=transcription_pb2.TranscriptionOptions(language="en"),
        ).SerializeToString()
        transcribe = channel.unary_unary(UNARY)
        while not stop.is_set():
            began_s = time.monotonic()
            answer = transcription_pb2.TranscribeResponse.FromString(
                await transcribe(request, metadata=(("x-api-key", key),))
            )
            times = times_of(answer.transcript.text)
            if self.is_measured and times is not None:
                self._found.n_calls += 1
                self._found.finals_s.append(time.monotonic() - began_s - (times[1] - times[0]))

    async def _write(self, call: grpc.aio.StreamStreamCall, stop: asyncio.Event) -> None:
        plan, size = self._plan, int(MESSAGE_S * BYTES_PER_S)
        config = transcription_pb2.StreamConfig(
            format=FORMAT,
            options=transcription_pb2.TranscriptionOptions(language="en"),
            interim_results=plan.interims,
        )
        await call.write(transcription_pb2.StreamTranscribeRequest(config=config).SerializeToString())
        began_s = time.monotonic()
        while not stop.is_set():
            at = len(self._sent_s) * size % (len(self._speech) - size)
            due_s = began_s + (len(self._sent_s) + 1) * MESSAGE_S * plan.slowdown
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            message = transcription_pb2.StreamTranscribeRequest(audio=self._speech[at : at + size]).SerializeToString()
            now_s = time.monotonic()
            self._sent_s.append(now_s)
            await call.write(message)
            if self.is_measured:
                self._found.late_s.append(now_s - due_s)
                self._found.n_messages += 1
                self._found.sent_bytes += len(message)
        await call.done_writing()

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while (data := await call.read()) is not grpc.aio.EOF:
            now_s = time.monotonic()
            if not self.is_measured:
                continue
            event = transcription_pb2.StreamTranscribeResponse.FromString(data)
            self._found.n_events += 1
            self._found.received_bytes += len(data)
            if event.HasField("interim"):
                text = event.interim.stable_text + event.interim.unstable_text
                self._interim(text, _seconds(event.interim.end_offset), now_s)
            elif event.HasField("segment"):
                self._found.n_finals += 1
                self._final(event.segment.text, _seconds(event.segment.end_offset), now_s)

    def _interim(self, text: str, end_s: float, now_s: float) -> None:
        times, sent_s = times_of(text), self._sent(end_s)
        if times is not None and sent_s is not None:
            self._found.interims_s.append(times[0] - sent_s + now_s - times[1])

    def _final(self, text: str, end_s: float, now_s: float) -> None:
        times, sent_s = times_of(text), self._sent(end_s + _SILENCE_S)
        if times is None or sent_s is None:
            self._found.n_unmatched += 1
            return
        self._found.finals_s.append(now_s - max(sent_s, times[1]))

    def _sent(self, offset_s: float) -> float | None:
        """When the message with this offset of the audio was sent; None if it was not."""
        index = math.ceil(round(offset_s / MESSAGE_S, 6)) - 1
        return self._sent_s[index] if 0 <= index < len(self._sent_s) else None


def _seconds(duration: object) -> float:
    return duration.seconds + duration.nanos / 1e9  # type: ignore[attr-defined, no-any-return]


async def main(plan: Plan) -> Found:
    """Open the streams one after another, measure while all are open, and end them."""
    found, stop, speech = Found(), asyncio.Event(), samples()
    callers = [Caller(plan, number, speech, found) for number in range(plan.n_streams)]
    tasks = []
    for caller in callers:
        tasks.append(asyncio.create_task(caller.run(stop)))
        await asyncio.sleep(plan.ramp_s / plan.n_streams)
    print("steady", flush=True)
    cpu_s = time.process_time()
    for caller in callers:
        caller.is_measured = True
    await asyncio.sleep(plan.steady_s)
    for caller in callers:
        caller.is_measured = False
    found.cpu_s = time.process_time() - cpu_s
    print("measured", flush=True)
    stop.set()
    await asyncio.wait(tasks)
    return found


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(asyncio.run(main(Plan(**json.loads(sys.stdin.readline())))))))
