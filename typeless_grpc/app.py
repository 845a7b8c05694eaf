"""The composition root: settings in, a server out. The only module that names concrete classes."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from typeless_grpc.audio.vad import SpeechDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.catalog import Catalog, is_model_directory
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.models import ModelPool, PoolOptions
from typeless_grpc.engine.recognizer import Recognizer, RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.whisper import Device, HuggingFaceHub, WhisperModel, choose_device
from typeless_grpc.engine.window import POLICIES
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor
from typeless_grpc.server import Server, ServerOptions, Service
from typeless_grpc.servicers.models import ModelServicer
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.servicers.transcription import TranscriptionLimits, TranscriptionServicer
from typeless_grpc.version import VERSION

LOADS_SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Listening:
    """A server that listens and is not serving yet, and its port."""

    server: Server
    port: int


@dataclass(frozen=True)
class App(Listening):
    """A server with its engine, not yet warm. model: name of the default model."""

    model: str
    device: Device
    models: ModelPool[WhisperModel]

    async def warm(self) -> None:
        """Load the default model, run it once, and report SERVING."""
        model = await self.models.load(self.model)
        await asyncio.to_thread(model.warm_up)
        await self.server.serving()


def catalog(settings: Settings) -> Catalog:
    """The catalogue of models these settings describe; a default model given as a path is in it by that path."""
    directories = dict(settings.model_dirs)
    if is_path(settings.model):
        directories[settings.model] = Path(settings.model).expanduser()
    return Catalog(settings.data_dir, HuggingFaceHub(), directories, download=settings.model_download)


def is_path(model: str) -> bool:
    """Whether a model is named by its directory."""
    return "/" in model or is_model_directory(Path(model))


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[App]:
    """Wire everything and listen; what was opened last is closed first on the way out."""
    async with AsyncExitStack() as stack:
        inference = stack.enter_context(ThreadPoolExecutor(settings.engine_workers, "inference"))
        detecting = stack.enter_context(ThreadPoolExecutor(settings.decode_threads, "detecting"))
        loading = stack.enter_context(ThreadPoolExecutor(LOADS_SIDE_BY_SIDE, "loading"))
        device = choose_device(settings.device, settings.compute_type)
        load = functools.partial(
            WhisperModel, device=device, n_threads=n_threads(settings), n_workers=settings.engine_workers
        )
        known = catalog(settings)
        pool = PoolOptions(settings.model, settings.max_model_memory_bytes)
        models = ModelPool(known, load, loading, SystemClock(), pool)
        if await asyncio.to_thread(known.find, settings.model) is None:
            raise SourceUnavailable(
                f"Model '{settings.model}' is not on this machine: typeless models pull {settings.model}",
                reason="MODEL_UNAVAILABLE",
            )
        scheduler: WindowScheduler = Scheduler(run_batch, scheduler_options(settings), SystemClock(), inference)
        await scheduler.start()
        stack.push_async_callback(scheduler.stop)
        options = RecognizerOptions(settings.model, settings.beam_size, POLICIES[settings.encoder_window])
        engine = Recognizer(models, SpeechDetector(), scheduler, options, detecting)
        manage = ModelServicer(models, known, settings.model)
        listening = await stack.enter_async_context(listen(settings, engine, [manage]))
        yield App(listening.server, listening.port, settings.model, device, models)


@asynccontextmanager
async def listen(settings: Settings, engine: Engine, more: Sequence[Service] = ()) -> AsyncIterator[Listening]:
    """Everything around an engine: services, interceptors, and the server that listens with them.

    Apart from `build`, so that it can stand around an engine that has no model. more: services that need one.
    """
    async with AsyncExitStack() as stack:
        decoding = stack.enter_context(ThreadPoolExecutor(settings.decode_threads, "decoding"))
        admission = Admission(AdmissionOptions(settings.max_concurrent_calls, settings.max_held_audio_s))
        drain = DrainInterceptor()
        services: list[Service] = [
            TranscriptionServicer(engine, admission, decoding, TranscriptionLimits(settings.max_audio_s)),
            ServerServicer(
                ServerFacts(VERSION, settings.model, settings.max_message_bytes, settings.max_audio_s),
            ),
            *more,
        ]
        interceptors = [
            RequestIdInterceptor(),
            StatusInterceptor(),
            drain,
            MessageSizeInterceptor(settings.max_message_bytes),
        ]
        server = Server(services, interceptors, drain, server_options(settings))
        port = await server.start()
        stack.push_async_callback(server.stop)
        yield Listening(server, port)


def scheduler_options(settings: Settings) -> SchedulerOptions:
    """The scheduler's part of the settings."""
    return SchedulerOptions(max_batch=settings.max_batch, n_workers=settings.engine_workers)


def n_threads(settings: Settings) -> int:
    """Threads for one inference: as set, else the cores shared among the workers."""
    return settings.cpu_threads or max(1, (os.cpu_count() or 4) // settings.engine_workers)


def server_options(settings: Settings) -> ServerOptions:
    """The server's part of the settings."""
    return ServerOptions(settings.host, settings.port, settings.max_message_bytes, settings.drain_timeout_s)
