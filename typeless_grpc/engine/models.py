"""The models that are loaded, by name.

A model is loaded by the first call that needs it, off the event loop; calls for other models do not wait for it. When
all of them together take more memory than allowed, the one unused for longest goes. A model that is in use is only
forgotten: its calls keep it until the last of them is done, and then it is freed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.errors import NotFound, WrongState


class Loaded(Protocol):
    """What the pool needs to know of a model."""

    @property
    def memory_bytes(self) -> int: ...


class Finder(Protocol):
    """Where models lie; `Catalog` is the real one."""

    def find(self, name: str) -> Path | None: ...

    def get(self, name: str) -> Path: ...


ModelT = TypeVar("ModelT", bound=Loaded)


@dataclass(frozen=True)
class PoolOptions:
    """default_model: never unloaded. max_memory_bytes: of all loaded models; the default one is kept even above it."""

    default_model: str
    max_memory_bytes: int = 4 * 1024**3


@dataclass(eq=False)
class _Entry(Generic[ModelT]):
    model: asyncio.Future[ModelT]
    used_s: float
    n_users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_loaded(self) -> bool:
        return self.model.done() and not self.model.cancelled() and self.model.exception() is None

    @property
    def memory_bytes(self) -> int:
        return self.model.result().memory_bytes if self.is_loaded else 0


class ModelPool(Generic[ModelT]):
    """Belongs to one event loop."""

    def __init__(
        self,
        finder: Finder,
        load: Callable[[str, Path], ModelT],
        executor: Executor,
        clock: Clock,
        options: PoolOptions,
    ) -> None:
        """executor: threads for loading; as many models are loaded side by side."""
        self._finder = finder
        self._load = load
        self._executor = executor
        self._clock = clock
        self._options = options
        self._entries: dict[str, _Entry[ModelT]] = {}
        self._fetches: dict[str, asyncio.Future[Path]] = {}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ModelT]:
        """The model called name, which stays loaded while this is open.

        Raises NotFound where it is not on this machine (calls never download), EngineFailed where it cannot be loaded.
        """
        entry = self._entries.get(name)
        if entry is None:
            directory = await asyncio.to_thread(self._finder.find, name)
            if directory is None:
                raise NotFound(f"This server has no model called '{name[:128]}'.", reason="MODEL_NOT_FOUND")
            entry = self._entry(name, directory)
        entry.n_users += 1
        entry.idle.clear()
        try:
            yield await asyncio.shield(entry.model)
        finally:
            entry.n_users -= 1
            entry.used_s = self._clock.now_s()
            if not entry.n_users:
                entry.idle.set()
                self._make_room()

    async def load(self, name: str) -> ModelT:
        """Load a model, fetched first where it is not on this machine. Raises as `Catalog.get`, and EngineFailed."""
        if name not in self._entries:
            self._entry(name, await self._fetched(name))
        async with self.use(name) as model:
            return model

    async def unload(self, name: str) -> None:
        """Forget a model, and wait until the work in progress on it is done.

        Raises NotFound where no such model is loaded, WrongState for the default one.
        """
        if name == self._options.default_model:
            raise WrongState(f"'{name}' is this server's default model.", reason="MODEL_IS_DEFAULT")
        entry = self._entries.pop(name, None)
        if entry is None:
            raise NotFound(f"No model called '{name}' is loaded.", reason="MODEL_NOT_FOUND")
        await asyncio.wait([entry.model])
        if entry.n_users:
            await entry.idle.wait()

    def loaded(self) -> dict[str, ModelT]:
        """The models that can be used now."""
        return {name: entry.model.result() for name, entry in self._entries.items() if entry.is_loaded}

    async def _fetched(self, name: str) -> Path:
        """Its directory; one download for all who ask, which goes on when one of them goes away."""
        fetch = self._fetches.get(name)
        if fetch is None:
            fetch = self._fetches[name] = asyncio.ensure_future(asyncio.to_thread(self._finder.get, name))
            fetch.add_done_callback(lambda _: self._fetches.pop(name))
        return await asyncio.shield(fetch)

    def _entry(self, name: str, directory: Path) -> _Entry[ModelT]:
        # Another call may have begun to load it while we looked for its directory.
        if name not in self._entries:
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._load, name, directory)
            entry = self._entries[name] = _Entry(future, self._clock.now_s())
            future.add_done_callback(lambda _: self._after_load(name, entry))
        return self._entries[name]

    def _after_load(self, name: str, entry: _Entry[ModelT]) -> None:
        # A load that failed is forgotten, so that the next call tries again.
        if not entry.is_loaded and self._entries.get(name) is entry:
            del self._entries[name]
        self._make_room()

    def _make_room(self) -> None:
        """Forget idle models, the one unused for longest first, until the rest fits."""
        idle = sorted(
            (entry.used_s, name)
            for name, entry in self._entries.items()
            if entry.is_loaded and not entry.n_users and name != self._options.default_model
        )
        for _, name in idle:
            if sum(entry.memory_bytes for entry in self._entries.values()) <= self._options.max_memory_bytes:
                return
            del self._entries[name]
