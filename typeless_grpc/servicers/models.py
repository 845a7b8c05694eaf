"""ModelService: which models there are, and an operator's hand on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

from typeless_grpc.access import principal
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc


class ServedModel(Protocol):
    """What is shown of a loaded model."""

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
    """The loaded models; `engine.pool.ModelPool` is the real one."""

    def may_load(self, name: str) -> bool: ...
    def loaded(self) -> dict[str, Any]: ...
    async def load(self, name: str) -> Any: ...
    async def unload(self, name: str) -> None: ...


class Names(Protocol):
    """The models that can be named; `engine.catalog.Catalog` is the real one."""

    def names(self) -> list[str]: ...
    def find(self, name: str) -> Path | None: ...


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Lists what is on this machine, loads and unloads."""

    NAME = "typeless.v1.ModelService"

    def __init__(self, pool: Pool, catalog: Names, default_model: str) -> None:
        self._pool = pool
        self._catalog = catalog
        self._default = default_model

    def register(self, server: grpc.aio.Server) -> None:
        """Take this service's calls."""
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.ListModelsResponse:
        """The models that calls can use: those on this machine, and those in memory whose files are gone since.

        An admin, who may load any, sees all of them; others those that their calls may have loaded or that are.
        """
        here = await asyncio.to_thread(lambda: {name for name in self._catalog.names() if self._catalog.find(name)})
        loaded = self._pool.loaded()
        if not principal.current().is_admin:
            here = {name for name in here if self._pool.may_load(name)}
        names = [name for name in self._catalog.names() if name in here or name in loaded]
        # The default one may have a name that only the data directory knows.
        names += sorted(({self._default} | set(loaded)) - set(names))
        return models_pb2.ListModelsResponse(models=[self._message(name, loaded.get(name)) for name in names])

    async def LoadModel(
        self, request: models_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.LoadModelResponse:
        """Fetch it where it is not here, load it, and answer when it can take requests."""
        model = await self._pool.load(_name(request.name))
        return models_pb2.LoadModelResponse(model=self._message(request.name, model))

    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.UnloadModelResponse:
        """Answer when the work in progress on it is done and it is gone."""
        await self._pool.unload(_name(request.name))
        return models_pb2.UnloadModelResponse()

    def _message(self, name: str, model: ServedModel | None) -> models_pb2.Model:
        message = models_pb2.Model(name=name, loaded=model is not None, is_default=name == self._default)
        if model is None:
            # Before it is loaded only the name tells: faster-whisper's English models end in ".en".
            message.multilingual = not name.endswith(".en")
            if not message.multilingual:
                message.languages.append("en")
            return message
        message.multilingual = model.is_multilingual
        message.languages.extend(model.languages)
        message.device = "cuda:0" if model.device_name == "cuda" else model.device_name
        message.compute_type = model.compute_type
        message.memory_bytes = model.memory_bytes
        return message


def _name(name: str) -> str:
    if not name:
        raise InvalidInput("name", "is empty")
    return name
