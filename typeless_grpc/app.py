"""The composition root: settings in, a server out. The only module that names concrete classes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from typeless_grpc.audio.vad import SpeechDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.catalog import Catalog, is_model_directory
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.models import ModelPool
from typeless_grpc.engine.recognizer import Recognizer, RecognizerOptions
from typeless_grpc.engine.whisper import Device, HuggingFaceHub, WhisperModel, choose_device
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor
from typeless_grpc.server import Server, ServerOptions, Service
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.servicers.transcription import TranscriptionLimits, TranscriptionServicer
from typeless_grpc.version import VERSION


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
        model = await self.models.get(self.model)
        await asyncio.get_running_loop().run_in_executor(None, model.warm_up)
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
        inference = stack.enter_context(ThreadPoolExecutor(2, "inference"))
        loading = stack.enter_context(ThreadPoolExecutor(1, "loading"))
        device = choose_device(settings.device, settings.compute_type)
        load = functools.partial(WhisperModel, device=device, n_threads=settings.cpu_threads)
        known = catalog(settings)
        models = ModelPool(known, load, loading)
        if await asyncio.get_running_loop().run_in_executor(loading, known.find, settings.model) is None:
            raise SourceUnavailable(
                f"Model '{settings.model}' is not on this machine: typeless models pull {settings.model}",
                reason="MODEL_UNAVAILABLE",
            )
        engine = Recognizer(
            models,
            SpeechDetector(),
            RecognizerOptions(settings.model, settings.beam_size, settings.max_concurrent_calls),
            inference,
        )
        listening = await stack.enter_async_context(listen(settings, engine))
        yield App(listening.server, listening.port, settings.model, device, models)


@asynccontextmanager
async def listen(settings: Settings, engine: Engine) -> AsyncIterator[Listening]:
    """Everything around an engine: services, interceptors, and the server that listens with them.

    Apart from `build`, so that it can stand around an engine that has no model.
    """
    async with AsyncExitStack() as stack:
        decoding = stack.enter_context(ThreadPoolExecutor(settings.decode_threads, "decoding"))
        drain = DrainInterceptor()
        services: list[Service] = [
            TranscriptionServicer(engine, decoding, TranscriptionLimits(settings.max_audio_s)),
            ServerServicer(
                ServerFacts(VERSION, settings.model, settings.max_message_bytes, settings.max_audio_s),
            ),
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


def server_options(settings: Settings) -> ServerOptions:
    """The server's part of the settings."""
    return ServerOptions(settings.host, settings.port, settings.max_message_bytes, settings.drain_timeout_s)
