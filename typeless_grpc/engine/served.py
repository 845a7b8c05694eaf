"""Protocols for the models of an engine, as servicers use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class ServedModel(Protocol):
    """The properties of a loaded model."""

    @property
    def memory_bytes(self) -> int: ...
    @property
    def is_multilingual(self) -> bool: ...
    @property
    def languages(self) -> Sequence[str]: ...
    @property
    def device_name(self) -> str: ...
    @property
    def compute_type(self) -> str: ...


class Pool(Protocol):
    """The loaded models; `ModelPool` is the real one."""

    def may_load(self, name: str) -> bool: ...
    def loaded(self) -> dict[str, Any]: ...
    async def load(self, name: str) -> Any: ...
    async def unload(self, name: str) -> None: ...


class Names(Protocol):
    """The names of models; `Catalog` is the real one. find: None for one that is not installed."""

    def names(self) -> list[str]: ...
    def find(self, name: str) -> object | None: ...
