"""Builds the whole program. The default model loads while the rest is imported, which takes about as long."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typeless_grpc.app.decoding import open_decoders
from typeless_grpc.app.memory import share_heaps
from typeless_grpc.app.metrics import open_metrics
from typeless_grpc.app.models import BuiltEngine, build_engine
from typeless_grpc.app.reloading import Reloads, follow_logs
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.app.tracing import Tracers, open_tracing
from typeless_grpc.audio.decoders import Decoders
from typeless_grpc.config import Settings
from typeless_grpc.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from typeless_grpc.server import Server


@dataclass(frozen=True)
class App:
    """A server that listens, and its engine, whose default model may still be loading.

    console_port: None without a console. model: the default model's name. warming: loads it and runs it once.
    is_warm: set when the server serves. reloads: the settings in force.
    """

    server: Server
    port: int
    console_port: int | None
    model: str
    engine: BuiltEngine
    warming: asyncio.Task[None]
    is_warm: asyncio.Event
    reloads: Reloads

    async def warm(self) -> None:
        """Wait until the default model has run once, then report SERVING. Raises EngineFailed if it cannot run."""
        await asyncio.shield(self.warming)
        await self.server.serving()
        self.is_warm.set()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[App]:
    """Wire everything and listen. On the way out, parts are closed in reverse order.

    Raises SourceUnavailable if the default model is not on this machine.
    """
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(_started(settings))
        await _import("typeless_grpc.app.background", "typeless_grpc.app.root")
        from typeless_grpc.app.background import keep_jobs
        from typeless_grpc.app.root import listen, model_service, usable_models

        is_warm = asyncio.Event()
        background = await stack.enter_async_context(
            keep_jobs(
                settings,
                engine=parts.built.engine,
                detector=parts.built.detector,
                has_model=parts.built.has_model,
                is_ready=is_warm,
                metrics=parts.metrics.jobs,
                reloads=parts.reloads,
                tracers=parts.tracers,
                decoders=parts.decoders,
            )
        )
        listening = await stack.enter_async_context(
            listen(
                settings,
                engine=parts.built.engine,
                detector=parts.built.detector,
                more=[model_service(settings, parts.built)],
                usable=usable_models(settings, parts.built),
                background=background,
                metrics=parts.metrics,
                reloads=parts.reloads,
                tracers=parts.tracers,
                decoders=parts.decoders,
            )
        )
        yield App(
            server=listening.server,
            port=listening.port,
            console_port=listening.console_port,
            model=settings.model,
            engine=parts.built,
            warming=parts.warming,
            is_warm=is_warm,
            reloads=parts.reloads,
        )


@asynccontextmanager
async def build_worker(settings: Settings) -> AsyncIterator[Reloads]:
    """Run jobs with an engine of their own, and accept no calls. Yields the settings in force."""
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(_started(settings))
        await _import("typeless_grpc.app.background")
        from typeless_grpc.app.background import keep_jobs

        await parts.warming
        background = await stack.enter_async_context(
            keep_jobs(
                settings,
                engine=parts.built.engine,
                detector=parts.built.detector,
                has_model=parts.built.has_model,
                metrics=parts.metrics.jobs,
                reloads=parts.reloads,
                tracers=parts.tracers,
                decoders=parts.decoders,
            )
        )
        parts.metrics.watch_admission(
            lambda: background.admission.held_s, lambda: parts.reloads.settings.max_held_audio_s
        )
        open_metrics(stack, settings, parts.metrics, parts.built.engine)
        yield parts.reloads


@dataclass(frozen=True)
class _Parts:
    """The parts that a server and a worker have in common.

    warming: loads the default model and runs it once, and starts what decodes containers.
    """

    metrics: Metrics
    reloads: Reloads
    tracers: Tracers
    built: BuiltEngine
    decoders: Decoders
    warming: asyncio.Task[None]


@asynccontextmanager
async def _started(settings: Settings) -> AsyncIterator[_Parts]:
    """Build the engine and what observes it; the default model loads meanwhile."""
    metrics = Metrics()
    reloads = Reloads(settings, report=metrics.reloaded)
    follow_logs(reloads)
    async with open_tracing() as tracers, open_decoders(settings, metrics.decoders) as (decoders, can_decode):
        share_heaps()
        async with await _engine(settings, metrics, reloads, tracers) as built:
            warming = asyncio.create_task(_warmed(built, can_decode))
            try:
                yield _Parts(metrics, reloads, tracers, built, decoders, warming)
            finally:
                await cancelled(warming)


async def _warmed(built: BuiltEngine, can_decode: Awaitable[None]) -> None:
    await built.warm()
    await can_decode


async def _engine(
    settings: Settings, metrics: Metrics, reloads: Reloads, tracers: Tracers
) -> AbstractAsyncContextManager[BuiltEngine]:
    """Return the engine of this process, or a group of others."""
    if settings.engine_address or settings.engine_processes != 1:
        await _import("typeless_grpc.app.engines")
        from typeless_grpc.app.engines import engine_group, n_processes

        if settings.engine_address or await asyncio.to_thread(n_processes, settings) > 1:
            return engine_group(settings, metrics.engine, reloads, tracers)
    return build_engine(settings, metrics.engine, reloads, tracers)


async def _import(*modules: str) -> None:
    """Import modules in a thread, so that the model loads and signals are handled in the meantime."""
    for module in modules:
        await asyncio.to_thread(importlib.import_module, module)
