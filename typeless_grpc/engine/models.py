"""The models that are loaded, by name; each is loaded once, by the first call that needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from typeless_grpc.errors import NotFound


class Finder(Protocol):
    """Where models lie on this machine; `Catalog` is the real one."""

    def find(self, name: str) -> Path | None: ...


ModelT = TypeVar("ModelT")


class ModelPool(Generic[ModelT]):
    """Loads models off the event loop; calls that want the same model wait for the same load."""

    def __init__(self, finder: Finder, load: Callable[[str, Path], ModelT], executor: Executor) -> None:
        self._finder = finder
        self._load = load
        self._executor = executor
        self._loading: dict[str, asyncio.Future[ModelT]] = {}

    async def get(self, name: str) -> ModelT:
        """The model called name. Raises NotFound where it is not on this machine: calls never download."""
        if name not in self._loading:
            directory = await asyncio.get_running_loop().run_in_executor(self._executor, self._finder.find, name)
            if directory is None:
                raise NotFound(f"This server has no model called '{name}'.", reason="MODEL_NOT_FOUND")
            # Another call may have begun to load it while we looked.
            if name not in self._loading:
                self._begin(name, directory)
        return await asyncio.shield(self._loading[name])

    def loaded(self, name: str) -> ModelT | None:
        """The model if it can be used now."""
        future = self._loading.get(name)
        return future.result() if future and future.done() and not future.exception() else None

    def _begin(self, name: str, directory: Path) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._load, name, directory)
        self._loading[name] = future
        # A load that failed is forgotten, so that the next call tries again.
        future.add_done_callback(lambda done: self._loading.pop(name) if done.cancelled() or done.exception() else None)
