"""An engine as its fronts use it: decodes their calls, and reports its state."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np

from typeless_grpc import account
from typeless_grpc.access import principal
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import Engine, Lane, Ticket
from typeless_grpc.engine.served import Names, Pool, ServedModel
from typeless_grpc.engines.messages import OPTIONS, RECOGNITION, VERSION, error_message
from typeless_grpc.engines.reports import FrontReports, Reports, origin
from typeless_grpc.engines.shared_audio import BYTES_PER_SAMPLE, SharedAudioReader
from typeless_grpc.errors import InvalidInput, Overloaded, TypelessError
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb
from typeless_grpc.pb.engine.v1 import engine_pb2_grpc
from typeless_grpc.telemetry.context import request_id
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.version import VERSION as PROGRAM

log = get_logger(__name__)

KEY_HEADER = "x-engine-key"
ALONE_HEADER = "x-engine-alone"  # in the headers of a response, once its call runs alone
MAX_QUIET_WAIT_S = 10.0  # for a call that must be alone; then others have their turn
QUIET_CHECK_S = 0.01  # between looks whether the batches of cancelled calls have ended
STATE_EVERY_S = 0.25  # while there is work
IDLE_STATE_EVERY_S = 1.0
PAUSE_S = 0.1  # between two messages, so that the changes of a busy engine share one
MODELS_EVERY_S = 15.0  # between looks at the disk for models that were added

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]


class Queue(Protocol):
    """The inference queue; `engine.scheduler.Scheduler` is the real one."""

    @property
    def has_work(self) -> bool: ...
    def backlog_s(self, lane: Lane) -> float: ...
    def n_queued(self, lane: Lane) -> int: ...


@dataclass(frozen=True)
class Served:
    """An engine and its parts. runs_on: where its models run, for people."""

    engine: Engine
    queue: Queue
    models: Pool
    known: Names
    default_model: str
    runs_on: str


@dataclass(frozen=True)
class EngineServiceOptions:
    """keys: secrets, one of which fronts must present; none for any front. max_audio_s: that all running calls hold.

    shared: the memory with the audio of the front's calls; None if it sends all of it.
    """

    keys: Callable[[], Sequence[str]]
    max_audio_s: Callable[[], float]
    shared: SharedAudioReader | None = None


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Serves the engine to fronts."""

    def __init__(self, served: Served, reports: Reports, clock: Clock, options: EngineServiceOptions) -> None:
        self._served = served
        self._reports = reports
        self._clock = clock
        self._options = options
        self._held_samples = 0
        self._n_calls = 0
        self._alone = asyncio.Lock()
        self._n_reserved = 0  # calls that are alone here, or will be
        self._is_ready = self._is_draining = self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._installed: tuple[str, ...] = ()

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, server)

    def ready(self) -> None:
        """Report from now on that the default model has run."""
        self._is_ready = True
        self._reports.wake()

    async def drain(self) -> None:
        """Take no new calls, and wait for the running ones."""
        self._is_draining = True
        self._reports.wake()
        await self._idle.wait()

    def close(self) -> None:
        """End the reports to all fronts."""
        self._is_closed = True
        self._reports.wake()

    # ---- decoding ----

    async def Decode(self, requests: AsyncIterator[pb.DecodeRequest], context: Context) -> pb.DecodeResponse:
        """Decode one call."""
        await self._check_key(context)
        messages = aiter(requests)
        first = await anext(messages)
        return await self._admitted(first.header, lambda: _audio(first, messages), context)

    async def DecodeShared(self, request: pb.DecodeSharedRequest, context: Context) -> pb.DecodeSharedResponse:
        """Decode one call, with audio in shared memory."""
        await self._check_key(context)

        async def audio() -> Audio | None:
            shared = self._options.shared
            return None if shared is None else shared.read(request.start, request.header.n_samples)

        return pb.DecodeSharedResponse(response=await self._admitted(request.header, audio, context))

    async def _admitted(
        self, header: pb.DecodeHeader, audio: Callable[[], Awaitable[Audio | None]], context: Context
    ) -> pb.DecodeResponse:
        """Decode a call if there is room for it."""
        n_samples = header.n_samples
        if self._is_draining:
            return pb.DecodeResponse(error=error_message(_draining()))
        if self._n_reserved and not header.is_alone:
            return pb.DecodeResponse(error=error_message(_taken()))
        is_full = self._held_samples + n_samples > self._options.max_audio_s() * SAMPLE_RATE_HZ
        if is_full and not header.is_alone:  # which waits until the others have ended
            full = Overloaded("The engine holds as much audio as it may.", reason="ENGINE_FULL")
            return pb.DecodeResponse(error=error_message(full))
        self._held_samples += n_samples
        self._n_calls += 1
        self._idle.clear()
        try:
            samples = await audio()
            if not header.is_alone:
                return await self._decode(header, samples)
            async with self._reserved():
                await context.send_initial_metadata(((ALONE_HEADER, "1"),))
                return await self._decode(header, samples)
        except TimeoutError:  # the engine did not become quiet
            return pb.DecodeResponse(error=error_message(_taken()))
        finally:
            self._held_samples -= n_samples
            self._n_calls -= 1
            if not self._n_calls:
                self._idle.set()
                self._reports.wake()

    @asynccontextmanager
    async def _reserved(self) -> AsyncIterator[None]:
        """Let a call run alone: refuse new calls, and wait for the others, and for the batches of cancelled ones.

        Raises TimeoutError if that takes too long.
        """
        self._n_reserved += 1
        self._reports.wake()
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(MAX_QUIET_WAIT_S):
                    await stack.enter_async_context(self._alone)
                    # No event says that the batch of a cancelled call has ended.
                    while self._n_calls > self._n_reserved or self._served.queue.has_work:  # noqa: ASYNC110
                        await asyncio.sleep(QUIET_CHECK_S)
                yield
        finally:
            self._n_reserved -= 1
            self._reports.wake()

    async def _decode(self, header: pb.DecodeHeader, audio: Audio | None) -> pb.DecodeResponse:
        """Decode an admitted call as its caller at the front. Returns its result or error. audio: None if it broke."""
        if audio is None:
            # The front has left, or it sent something else than it announced.
            return pb.DecodeResponse(error=error_message(InvalidInput("audio", "is incomplete")))
        origin.set((header.front, header.call))
        request_id.set(header.request_id)
        principal.enter(principal.Principal(id=header.caller, owner=""))
        options = OPTIONS.validate_json(header.options_json)
        deadline_s = self._clock.now_s() + header.remaining_s if header.HasField("remaining_s") else None
        ticket = Ticket(Lane(header.lane), header.caller, deadline_s)
        decode = self._served.engine.recognize if header.is_utterance else self._served.engine.transcribe
        with account.opened(account.CallAccount()) as used:
            try:
                recognition = await decode(audio, options, ticket)
            except TypelessError as error:
                return pb.DecodeResponse(error=error_message(error))
            except Exception as error:
                log.exception("unforeseen error")
                return pb.DecodeResponse(error=error_message(error))
        return pb.DecodeResponse(
            decoded=pb.Decoded(
                recognition_json=RECOGNITION.dump_json(recognition).decode(),
                queue_s=used.queue_s,
                processing_s=used.processing_s,
            )
        )

    # ---- the state ----

    async def Watch(  # type: ignore[override] # a coroutine that writes: see interceptors/seam.py
        self, request: pb.WatchRequest, context: Context
    ) -> None:
        """Send the state, until the front leaves."""
        await self._check_key(context)
        kept = self._reports.open(request.front)
        sent_models: pb.Models | None = None
        try:
            while not self._is_closed:
                models = self._models()
                await context.write(self._state(kept, None if models == sent_models else models))
                sent_models = models
                await asyncio.sleep(PAUSE_S)
                with suppress(TimeoutError):
                    is_idle = not self._n_calls
                    await asyncio.wait_for(kept.changed.wait(), IDLE_STATE_EVERY_S if is_idle else STATE_EVERY_S)
        finally:
            self._reports.close(request.front, kept)

    async def keep_models_current(self) -> None:
        """Read again and again which models are on the disk, until cancelled."""
        while True:
            await self._find_models()
            await asyncio.sleep(MODELS_EVERY_S)

    async def _find_models(self) -> None:
        """Read which models are on the disk."""
        known = self._served.known
        names = dict.fromkeys([*known.names(), self._served.default_model])
        self._installed = await asyncio.to_thread(lambda: tuple(name for name in names if known.find(name)))

    def _state(self, kept: FrontReports, models: pb.Models | None) -> pb.WatchResponse:
        """Return what one front sees of this engine now."""
        served = self._served
        return pb.WatchResponse(
            contract=VERSION,
            version=PROGRAM,
            now_s=self._clock.now_s(),
            is_ready=self._is_ready,
            is_draining=self._is_draining,
            is_reserved=self._n_reserved > 0,
            stalled_s=served.engine.stalled_s,
            backlog_s=[served.queue.backlog_s(lane) for lane in Lane],
            n_queued=[served.queue.n_queued(lane) for lane in Lane],
            runs_on=served.runs_on,
            default_model=served.default_model,
            models=models,
            reports=kept.take(),
        )

    def _models(self) -> pb.Models:
        """Return the models that are known or loaded here."""
        loaded = self._served.models.loaded()
        names = dict.fromkeys([*self._served.known.names(), self._served.default_model, *loaded])
        return pb.Models(
            models=[
                pb.Model(
                    name=name,
                    is_installed=name in self._installed,
                    may_load=self._served.models.may_load(name),
                    loaded=_loaded(loaded[name]) if name in loaded else None,
                )
                for name in names
            ]
        )

    # ---- models ----

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Load a model."""
        await self._check_key(context)

        async def load() -> pb.LoadModelResponse:
            model = await self._served.models.load(request.name)
            await self._find_models()
            self._reports.wake()
            return pb.LoadModelResponse(model=_loaded(model))

        return await _answered(load, lambda error: pb.LoadModelResponse(error=error))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Unload a model."""
        await self._check_key(context)

        async def unload() -> pb.UnloadModelResponse:
            await self._served.models.unload(request.name)
            self._reports.wake()
            return pb.UnloadModelResponse()

        return await _answered(unload, lambda error: pb.UnloadModelResponse(error=error))

    async def _check_key(self, context: Context) -> None:
        keys = self._options.keys()
        if not keys:
            return
        given = next((value for name, value in context.invocation_metadata() or () if name == KEY_HEADER), "")
        if not any(hmac.compare_digest(str(given).encode(), key.encode()) for key in keys):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The engine has another engine_key.")


async def _answered(work: Callable[[], Awaitable[T]], failed: Callable[[pb.EngineError], T]) -> T:
    """Return what work returns, or what `failed` makes of its error."""
    try:
        return await work()
    except TypelessError as error:
        return failed(error_message(error))
    except Exception as error:
        log.exception("unforeseen error")
        return failed(error_message(error))


async def _audio(first: pb.DecodeRequest, requests: AsyncIterator[pb.DecodeRequest]) -> Audio | None:
    """Return the samples of all requests; None if they are not as many as announced."""
    n_bytes = first.header.n_samples * BYTES_PER_SAMPLE
    if len(first.samples) == n_bytes:
        return np.frombuffer(first.samples, "<f4")
    audio = bytearray(n_bytes)
    filled = len(first.samples)
    if filled > n_bytes:
        return None
    audio[:filled] = first.samples
    async for request in requests:
        end = filled + len(request.samples)
        if end > n_bytes:
            return None
        audio[filled:end] = request.samples
        filled = end
    return np.frombuffer(audio, "<f4") if filled == n_bytes else None


def _loaded(model: ServedModel) -> pb.LoadedModel:
    return pb.LoadedModel(
        memory_bytes=model.memory_bytes,
        is_multilingual=model.is_multilingual,
        languages=model.languages,
        device_name=model.device_name,
        compute_type=model.compute_type,
    )


def _draining() -> Overloaded:
    return Overloaded("The engine is shutting down.", reason="DRAINING")


def _taken() -> Overloaded:
    return Overloaded("The engine decodes a call that must be alone.", reason="RESERVED")
