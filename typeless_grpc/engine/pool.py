"""The models that are loaded, by name.

A model is loaded by the first call that needs it, off the event loop; calls for loaded models do not wait for it.
Memory is looked at before: what it will take, with what those take that are loading, must fit into what all models may
have together, and loading it into what the machine has free. Idle models go for it, the one unused for longest first;
one that is in use never does, and where that does not suffice the new one is refused. A model that an operator unloads
while it is in use is only forgotten: its calls keep it until the last of them is done, and then it is freed.
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

# How soon a model that is refused for want of memory may fit: calls that hold another take seconds.
RETRY_AFTER_S = 5.0


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
class Footprint:
    """Memory that a model takes, in bytes; 0 where its files do not tell. loading: in all, until it is loaded."""

    loaded: int = 0
    loading: int = 0


@dataclass(frozen=True)
class PoolOptions:
    """default_model: never unloaded, and loaded whatever it takes. max_memory_bytes: of all loaded models.

    loadable: the models besides it that calls may have loaded, None for all; others need a `load`.
    """

    default_model: str
    max_memory_bytes: int = 4 * 1024**3
    loadable: frozenset[str] | None = None

    def may_load(self, name: str) -> bool:
        """Whether a call may have a model loaded."""
        return self.loadable is None or name == self.default_model or name in self.loadable


@dataclass(eq=False)
class _Entry(Generic[ModelT]):
    model: asyncio.Future[ModelT]
    footprint: Footprint
    used_s: float
    n_users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_loaded(self) -> bool:
        return self.model.done() and not self.model.cancelled() and self.model.exception() is None

    @property
    def memory_bytes(self) -> int:
        return self.model.result().memory_bytes if self.is_loaded else self.footprint.loaded


class ModelPool(Generic[ModelT]):
    """Belongs to one event loop."""

    def __init__(
        self,
        finder: Finder,
        load: Callable[[str, Path], ModelT],
        executor: Executor,
        clock: Clock,
        options: PoolOptions,
        *,
        footprint: Callable[[Path], Footprint] = lambda directory: Footprint(),
        free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        """executor: threads for loading; as many models are loaded side by side.

        footprint: of the model in a directory. free_bytes: of the machine's memory, None where that is not known.
        """
        self._finder = finder
        self._load = load
        self._executor = executor
        self._clock = clock
        self._options = options
        self._footprint, self._free_bytes = footprint, free_bytes
        self._entries: dict[str, _Entry[ModelT]] = {}
        self._fetches: dict[str, asyncio.Future[Path]] = {}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ModelT]:
        """The model called name, which stays loaded while this is open.

        Raises NotFound where it is not on this machine (calls never download) or not for calls to load, Overloaded
        where it does not fit into memory now, WrongState where it never does, EngineFailed where it cannot be loaded.
        """
        entry = self._entries.get(name)
        if entry is None:
            may_load = self._options.may_load(name)
            directory = await asyncio.to_thread(self._finder.find, name) if may_load else None
            if directory is None:
                raise NotFound(f"This server has no model called '{name[:128]}'.", reason="MODEL_NOT_FOUND")
            entry = await self._entry(name, directory)
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
        """Load a model, fetched first where it is not on this machine. Raises as `Catalog.get`, and as `use`."""
        if name not in self._entries:
            await self._entry(name, await self._fetched(name))
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

    def may_load(self, name: str) -> bool:
        """Whether calls may have a model loaded."""
        return self._options.may_load(name)

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

    async def _entry(self, name: str, directory: Path) -> _Entry[ModelT]:
        footprint = await asyncio.to_thread(self._footprint, directory)
        # Another call may have begun to load it while we looked at its files.
        if name not in self._entries:
            if name != self._options.default_model and footprint.loaded:
                self._make_room_for(name, footprint)
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._load, name, directory)
            entry = self._entries[name] = _Entry(future, footprint, self._clock.now_s())
            future.add_done_callback(lambda _: self._after_load(name, entry))
        return self._entries[name]

    def _after_load(self, name: str, entry: _Entry[ModelT]) -> None:
        # A load that failed is forgotten, so that the next call tries again.
        if not entry.is_loaded and self._entries.get(name) is entry:
            del self._entries[name]
        self._make_room()

    def _make_room_for(self, name: str, wanted: Footprint) -> None:
        """Forget as many idle models as a new one needs. Raises Overloaded or WrongState, and forgets none then."""
        default = self._entries.get(self._options.default_model)
        if wanted.loaded + (default.memory_bytes if default else 0) > self._options.max_memory_bytes:
            message = f"Model '{name}' needs about {_size(wanted.loaded)}, more than this server lets its models have."
            raise WrongState(message, reason="MODEL_TOO_LARGE")
        idle_bytes = sum(self._entries[one].memory_bytes for one in self._idle())
        if self._lacking_bytes(wanted) > idle_bytes:
            raise Overloaded(
                f"Model '{name}' needs about {_size(wanted.loading)} of memory to be loaded, which is in use now.",
                reason="MODEL_DOES_NOT_FIT",
                retry_after_s=RETRY_AFTER_S,
            )
        self._make_room(wanted)

    def _make_room(self, wanted: Footprint | None = None) -> None:
        """Forget idle models, the one unused for longest first, until the rest fits, and a new one that is wanted."""
        lacking = self._lacking_bytes(wanted)
        for name in self._idle():
            if lacking <= 0:
                return
            lacking -= self._entries.pop(name).memory_bytes

    def _idle(self) -> list[str]:
        """The models that nobody uses, that unused for longest first."""
        idle = (
            (entry.used_s, name)
            for name, entry in self._entries.items()
            if entry.is_loaded and not entry.n_users and name != self._options.default_model
        )
        return [name for _, name in sorted(idle)]

    def _lacking_bytes(self, wanted: Footprint | None) -> int:
        """How much memory there is too little, for what is loaded and loading and for a new one; 0 or less: none."""
        entries = self._entries.values()
        new = wanted or Footprint()
        lacking = sum(entry.memory_bytes for entry in entries) + new.loaded - self._options.max_memory_bytes
        free_bytes = self._free_bytes() if wanted is not None else None
        if free_bytes is None:
            return lacking
        # Those that load may have some of theirs already: rather one too few than one too many.
        loading = sum(entry.footprint.loading for entry in entries if not entry.model.done())
        return max(lacking, loading + new.loading - free_bytes)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1024**2:,.0f} MiB"
