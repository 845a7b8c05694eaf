"""The pool of loaded models, by name.

A model is loaded by the first call that needs it, off the event loop; calls for loaded models do not wait for it.
Memory is checked first: the new model must fit into what all models may use together, those that are loading included,
and loading it must fit into the machine's free memory. Idle models are evicted for it, the least recently used first; a
model in use never is, and if evictions do not suffice, the new model is refused. A model that is unloaded while it is
in use is only forgotten: its calls keep it until the last of them ends.
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
from typeless_grpc.errors import NotFound, Overloaded, WrongState

# When a model that was refused for lack of memory may fit: calls that use another one take seconds.
RETRY_AFTER_S = 5.0


class LoadedModel(Protocol):
    """The properties of a model that the pool needs."""

    @property
    def memory_bytes(self) -> int: ...


class ModelSource(Protocol):
    """Finds and fetches models; `Catalog` implements it."""

    def find(self, name: str) -> Path | None: ...

    def get(self, name: str) -> Path: ...


ModelT = TypeVar("ModelT", bound=LoadedModel)


@dataclass(frozen=True)
class Footprint:
    """Memory that a model takes, in bytes; 0 if unknown. loading: the maximum while it is being loaded."""

    loaded: int = 0
    loading: int = 0


@dataclass(frozen=True)
class PoolOptions:
    """default_model: is never evicted, and is loaded whatever memory it takes.

    max_memory_bytes: sum for all loaded models. loadable: other models that calls may load, None for all; the rest must
    be loaded by `load`.
    """

    default_model: str
    max_memory_bytes: int
    loadable: frozenset[str] | None = None

    def may_load(self, name: str) -> bool:
        """Whether a call may load a model."""
        return self.loadable is None or name == self.default_model or name in self.loadable


@dataclass(eq=False)
class _Entry(Generic[ModelT]):
    """A model that is loaded or being loaded. n_users: calls that use it. idle: set when the last of them ends."""

    model: asyncio.Future[ModelT]
    footprint: Footprint
    last_used_s: float
    n_users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_loaded(self) -> bool:
        return self.model.done() and not self.model.cancelled() and self.model.exception() is None

    @property
    def memory_bytes(self) -> int:
        return self.model.result().memory_bytes if self.is_loaded else self.footprint.loaded


class ModelPool(Generic[ModelT]):
    """Loads, shares and evicts models. Belongs to one event loop."""

    def __init__(
        self,
        source: ModelSource,
        load: Callable[[str, Path], ModelT],
        executor: Executor,
        clock: Clock,
        options: PoolOptions,
        *,
        footprint: Callable[[Path], Footprint] = lambda directory: Footprint(),
        free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        """executor: threads for loading; its size bounds how many models load at the same time.

        footprint: of the model in a directory. free_bytes: of the machine's memory, None if unknown.
        """
        self._source = source
        self._load = load
        self._executor = executor
        self._clock = clock
        self._options = options
        self._footprint, self._free_bytes = footprint, free_bytes
        self._entries: dict[str, _Entry[ModelT]] = {}
        self._fetches: dict[str, asyncio.Future[Path]] = {}

    def set_options(self, options: PoolOptions) -> None:
        """Apply these options to the next load. Loaded models stay until others need their memory."""
        self._options = options

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ModelT]:
        """Yield the model called name, which stays loaded while this is open.

        Raises NotFound if it is not on this machine (calls never download) or calls may not load it, Overloaded if it
        does not fit into memory now, WrongState if it never does, EngineFailed if it cannot be loaded.
        """
        entry = self._entries.get(name)
        if entry is None:
            may_load = self._options.may_load(name)
            directory = await asyncio.to_thread(self._source.find, name) if may_load else None
            if directory is None:
                raise NotFound(f"This server has no model called '{name[:128]}'.", reason="MODEL_NOT_FOUND")
            entry = await self._get_or_load(name, directory)
        entry.n_users += 1
        entry.idle.clear()
        try:
            yield await asyncio.shield(entry.model)
        finally:
            entry.n_users -= 1
            entry.last_used_s = self._clock.now_s()
            if not entry.n_users:
                entry.idle.set()
                self._evict()

    async def load(self, name: str) -> ModelT:
        """Load a model, and fetch it first if it is not on this machine. Raises as `Catalog.get` and `use`."""
        if name not in self._entries:
            await self._get_or_load(name, await self._fetch(name))
        async with self.use(name) as model:
            return model

    async def unload(self, name: str) -> None:
        """Forget a model, and wait until no call uses it.

        Raises NotFound if no such model is loaded, WrongState for the default model.
        """
        if name == self._options.default_model:
            raise WrongState(f"'{name}' is this server's default model.", reason="MODEL_IS_DEFAULT")
        entry = self._entries.pop(name, None)
        if entry is None:
            raise NotFound(f"No model called '{name}' is loaded.", reason="MODEL_NOT_FOUND")
        await asyncio.wait([entry.model])
        if entry.n_users:
            await entry.idle.wait()

    def may_load(self, name: str) -> bool:
        """Whether calls may load a model."""
        return self._options.may_load(name)

    def loaded(self) -> dict[str, ModelT]:
        """Return the models that are loaded now."""
        return {name: entry.model.result() for name, entry in self._entries.items() if entry.is_loaded}

    async def _fetch(self, name: str) -> Path:
        """Return the model's directory. Concurrent calls share one download, which a cancelled call does not stop."""
        fetch = self._fetches.get(name)
        if fetch is None:
            fetch = self._fetches[name] = asyncio.ensure_future(asyncio.to_thread(self._source.get, name))
            fetch.add_done_callback(lambda _: self._fetches.pop(name))
        return await asyncio.shield(fetch)

    async def _get_or_load(self, name: str, directory: Path) -> _Entry[ModelT]:
        footprint = await asyncio.to_thread(self._footprint, directory)
        # Another call may have begun to load it meanwhile.
        if name not in self._entries:
            if name != self._options.default_model and footprint.loaded:
                self._evict_for(name, footprint)
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._load, name, directory)
            entry = self._entries[name] = _Entry(future, footprint, self._clock.now_s())
            future.add_done_callback(lambda _: self._after_load(name, entry))
        return self._entries[name]

    def _after_load(self, name: str, entry: _Entry[ModelT]) -> None:
        # Forget a load that failed, so that the next call tries again.
        if not entry.is_loaded and self._entries.get(name) is entry:
            del self._entries[name]
        self._evict()

    def _evict_for(self, name: str, new: Footprint) -> None:
        """Evict as many idle models as a new one needs. Raises Overloaded or WrongState, and evicts none then."""
        default = self._entries.get(self._options.default_model)
        if new.loaded + (default.memory_bytes if default else 0) > self._options.max_memory_bytes:
            message = f"Model '{name}' needs about {_size(new.loaded)}, more than this server allows for models."
            raise WrongState(message, reason="MODEL_TOO_LARGE")
        idle_bytes = sum(self._entries[one].memory_bytes for one in self._idle())
        if self._lacking_bytes(new) > idle_bytes:
            raise Overloaded(
                f"Loading model '{name}' needs about {_size(new.loading)} of memory, which is in use now.",
                reason="MODEL_DOES_NOT_FIT",
                retry_after_s=RETRY_AFTER_S,
            )
        self._evict(new)

    def _evict(self, new: Footprint | None = None) -> None:
        """Evict idle models, the least recently used first, until the rest and a new one fit."""
        lacking = self._lacking_bytes(new)
        for name in self._idle():
            if lacking <= 0:
                return
            lacking -= self._entries.pop(name).memory_bytes

    def _idle(self) -> list[str]:
        """Return the models that no call uses, the least recently used first."""
        idle = (
            (entry.last_used_s, name)
            for name, entry in self._entries.items()
            if entry.is_loaded and not entry.n_users and name != self._options.default_model
        )
        return [name for _, name in sorted(idle)]

    def _lacking_bytes(self, new: Footprint | None) -> int:
        """Return how much memory is lacking for all models and a new one; 0 or less if there is enough."""
        entries = self._entries.values()
        added = new or Footprint()
        lacking = sum(entry.memory_bytes for entry in entries) + added.loaded - self._options.max_memory_bytes
        free_bytes = self._free_bytes() if new is not None else None
        if free_bytes is None:
            return lacking
        # A model that is loading may have taken some of its memory already; counting all of it errs on the safe side.
        loading = sum(entry.footprint.loading for entry in entries if not entry.model.done())
        return max(lacking, loading + added.loading - free_bytes)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1024**2:,.0f} MiB"
