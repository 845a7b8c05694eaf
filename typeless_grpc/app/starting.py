"""The product, soon: the default model loads while the rest of the program is imported, which takes as long."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from typeless_grpc.app.memory import share_heaps
from typeless_grpc.app.models import BuiltEngine, build_engine
from typeless_grpc.app.tasks import ended
from typeless_grpc.config import Settings

if TYPE_CHECKING:
    from typeless_grpc.server import Server


@dataclass(frozen=True)
class App:
    """A server that listens, its port, and its engine, which may still be loading. model: name of the default model."""

    server: Server
    port: int
    model: str
    engine: BuiltEngine
    warming: asyncio.Task[None]
    is_warm: asyncio.Event

    async def warm(self) -> None:
        """Wait until the default model has run once, and report SERVING. Raises EngineFailed where it cannot run."""
        await asyncio.shield(self.warming)
        await self.server.serving()
        self.is_warm.set()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[App]:
    """Wire everything and listen; what was opened last is closed first on the way out.

    Raises SourceUnavailable where the default model is not on this machine.
    """
    async with AsyncExitStack() as stack:
        engine, warming = await stack.enter_async_context(_loading(settings))
        background = await _imported("typeless_grpc.app.background")
        root = await _imported("typeless_grpc.app.root")
        is_warm = asyncio.Event()
        jobs = await stack.enter_async_context(
            background.keep_jobs(settings, engine.recognizer, engine.has_model, is_ready=is_warm)
        )
        listening = await stack.enter_async_context(
            root.listen(settings, engine.recognizer, [root.model_service(settings, engine)], jobs)
        )
        yield App(listening.server, listening.port, settings.model, engine, warming, is_warm)


@asynccontextmanager
async def build_worker(settings: Settings) -> AsyncIterator[None]:
    """Run jobs with an engine of their own, and take no calls."""
    async with AsyncExitStack() as stack:
        engine, warming = await stack.enter_async_context(_loading(settings))
        background = await _imported("typeless_grpc.app.background")
        await warming
        await stack.enter_async_context(background.keep_jobs(settings, engine.recognizer, engine.has_model))
        yield


@asynccontextmanager
async def _loading(settings: Settings) -> AsyncIterator[tuple[BuiltEngine, asyncio.Task[None]]]:
    """The engine, and the task that loads its default model and runs it once."""
    share_heaps()
    async with build_engine(settings) as engine:
        warming = asyncio.create_task(engine.warm())
        try:
            yield engine, warming
        finally:
            await ended(warming)


async def _imported(module: str) -> ModuleType:
    """A module of ours, imported in a thread: meanwhile the model loads, and signals are heard."""
    return await asyncio.to_thread(importlib.import_module, module)
