"""An engine in another process or on another machine, as an `Engine`.

When it is lost, its calls end with `EngineLost`, and `EngineGroup` decodes them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc import account
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.engine.observer import EngineObserver
from typeless_grpc.engines.connection import EngineConnection, EngineLost, RemoteOptions
from typeless_grpc.engines.messages import MAX_SAMPLES_BYTES, OPTIONS, RECOGNITION, Replay, error_of
from typeless_grpc.engines.servicer import ALONE_HEADER
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb
from typeless_grpc.telemetry.context import request_id

REPORT_DELAY_S = 0.05  # a report may not include calls that were sent so shortly before it
# Seconds of an engine for a second of audio, until calls have measured it. It only has to be of the right order.
FIRST_PACE = 0.05
PACE_WEIGHT = 0.1
HEADERS_DELAY_S = 0.1  # for headers that have come to be seen
MAX_ENDED_CALLS = 1024  # whose contexts are kept, for reports that come after their results


@dataclass(eq=False)
class _Sent:
    """A call that has no result yet. cost_s: the time that it takes the engine, estimated.

    began_alone: whether the engine has begun it, with nothing else beside it.
    """

    call: Any
    sent_s: float
    cost_s: float
    context: Context
    is_lost: bool = False
    began_alone: bool = False


class RemoteEngine(EngineConnection):
    """An `Engine` over a connection; see `EngineConnection`."""

    def __init__(
        self,
        name: str,
        options: RemoteOptions,
        clock: Clock,
        observer: EngineObserver,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """observer: of what the engine does for this front. The rest is as for `EngineConnection`."""
        super().__init__(name, options, clock, on_change=on_change, on_lost=on_lost)
        self._observer = observer
        self._n_calls = 0
        self._sent: dict[int, _Sent] = {}
        self._ended: dict[int, Context] = {}
        self._pace = FIRST_PACE

    def replay(self, reports: Sequence[pb.Report], offset_s: float) -> None:
        """See `EngineConnection`."""
        Replay(self._observer, offset_s, self._context_of).report(reports)

    def end_calls(self) -> None:
        """See `EngineConnection`."""
        for sent in self._sent.values():
            sent.is_lost = True
            sent.call.cancel()

    @property
    def n_sent(self) -> int:
        """How many calls have no result yet."""
        return len(self._sent)

    def wait_s(self, lane: Lane) -> float:
        """Return how long new work would wait: as last reported, and with what was sent since."""
        reported = self.report.state.backlog_s
        since_s = self.report.came_s - REPORT_DELAY_S
        sent_s = sum(sent.cost_s for sent in self._sent.values() if sent.sent_s >= since_s)
        return (reported[lane] if reported else 0.0) + sent_s

    # ---- calls ----

    async def transcribe(
        self, audio: Audio, options: DecodeOptions, ticket: Ticket, *, is_alone: bool = False
    ) -> Recognition:
        """See `Engine`; one channel only. is_alone: decode it while the engine has nothing else.

        Raises EngineLost if the engine is lost before it answers, Overloaded (RESERVED) if another call is alone there.
        """
        return await self._decode(audio, options, ticket, is_utterance=False, is_alone=is_alone)

    async def recognize(
        self, utterance: Audio, options: DecodeOptions, ticket: Ticket, *, is_alone: bool = False
    ) -> Recognition:
        """See `Engine`. The rest is as for `transcribe`."""
        return await self._decode(utterance, options, ticket, is_utterance=True, is_alone=is_alone)

    async def _decode(
        self, audio: Audio, options: DecodeOptions, ticket: Ticket, *, is_utterance: bool, is_alone: bool
    ) -> Recognition:
        """Send audio to the engine and wait for its answer. Raises EngineLost if the connection is lost."""
        if not self.is_connected:
            raise EngineLost(self.name, "it is not connected")
        self._n_calls += 1
        number, now_s = self._n_calls, self.clock.now_s()
        header = pb.DecodeHeader(
            front=self.front,
            call=number,
            is_utterance=is_utterance,
            n_samples=len(audio),
            options_json=OPTIONS.dump_json(options).decode(),
            lane=ticket.lane,
            caller=ticket.caller,
            remaining_s=None if ticket.deadline_s is None else ticket.deadline_s - now_s,
            request_id=request_id.get(),
            is_alone=is_alone,
        )
        audio_s = len(audio) / SAMPLE_RATE_HZ
        with self._call(header, audio) as call:
            sent = self._sent[number] = _Sent(call, now_s, audio_s * self._pace, copy_context())
            try:
                answer = await (self._answer_alone(sent) if is_alone else self._answer_to(sent))
            finally:
                del self._sent[number]
                self._keep_context(number, sent.context)
        response: pb.DecodeResponse = getattr(answer, "response", answer)
        if response.HasField("error"):
            if response.error.reason == "RESERVED":
                self.report.state.is_reserved = True  # until the next report
            raise error_of(response.error)
        used = account.current()
        used.queue_s += response.decoded.queue_s
        used.processing_s += response.decoded.processing_s
        if audio_s:
            self._pace += PACE_WEIGHT * (response.decoded.processing_s / audio_s - self._pace)
        return RECOGNITION.validate_json(response.decoded.recognition_json)

    @contextmanager
    def _call(self, header: pb.DecodeHeader, audio: Audio) -> Iterator[Any]:
        """Send a call: its audio through shared memory if there is room, else in messages.

        Only grpc.aio's calls with several requests deliver headers before their response, which tell that a call runs
        alone.
        """
        shared = None if header.is_alone else self.options.shared
        region = shared.put(audio) if shared is not None else None
        if shared is None or region is None:
            yield self.stub.Decode(_requests(header, audio), metadata=self.metadata)
            return
        try:
            yield self.stub.DecodeShared(pb.DecodeSharedRequest(header=header, start=region.start))
        finally:
            shared.free(region)

    async def _answer_alone(self, sent: _Sent) -> Any:
        """Wait for the answer to a call that is to be alone. EngineLost says whether it was."""

        async def begun() -> None:
            headers = await sent.call.initial_metadata()
            sent.began_alone = any(name == ALONE_HEADER for name, _ in headers)

        beginning = asyncio.create_task(begun(), name="engine-call-begins")
        try:
            return await self._answer_to(sent)
        except EngineLost as lost:
            await asyncio.wait([beginning], timeout=HEADERS_DELAY_S)
            raise EngineLost(self.name, lost.why, was_alone=sent.began_alone) from lost
        finally:
            beginning.cancel()

    async def _answer_to(self, sent: _Sent) -> Any:
        try:
            return await sent.call
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sent.is_lost and not (task and task.cancelling()):
                raise EngineLost(self.name, "it hangs") from None
            sent.call.cancel()
            raise

    def _context_of(self, call: int) -> Context:
        if sent := self._sent.get(call):
            return sent.context
        return self._ended.get(call) or Context()

    def _keep_context(self, call: int, context: Context) -> None:
        self._ended[call] = context
        if len(self._ended) > MAX_ENDED_CALLS:
            del self._ended[next(iter(self._ended))]

    # ---- models ----

    async def load(self, name: str) -> pb.LoadedModel:
        """Load a model. Raises as `ModelPool.load`, or EngineLost."""
        request = pb.LoadModelRequest(name=name)
        response = await self._answer(lambda: self.stub.LoadModel(request, metadata=self.metadata))
        if response.HasField("error"):
            raise error_of(response.error)
        loaded: pb.LoadedModel = response.model
        return loaded

    async def unload(self, name: str) -> None:
        """Unload a model. Raises as `ModelPool.unload`, or EngineLost."""
        request = pb.UnloadModelRequest(name=name)
        response = await self._answer(lambda: self.stub.UnloadModel(request, metadata=self.metadata))
        if response.HasField("error"):
            raise error_of(response.error)

    async def _answer(self, call: Callable[[], Any]) -> Any:
        if not self.is_connected:
            raise EngineLost(self.name, "it is not connected")
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error


def _requests(header: pb.DecodeHeader, audio: Audio) -> Iterator[pb.DecodeRequest]:
    step = MAX_SAMPLES_BYTES // 4
    yield pb.DecodeRequest(header=header, samples=audio[:step].astype("<f4", copy=False).tobytes())
    for start in range(step, len(audio), step):
        yield pb.DecodeRequest(samples=audio[start : start + step].astype("<f4", copy=False).tobytes())
