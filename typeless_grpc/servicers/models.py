"""ModelService: lists, loads and unloads models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from typeless_grpc.access import principal
from typeless_grpc.engine.served import Names, Pool, ServedModel
from typeless_grpc.errors import InvalidInput, NotFound
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc


class Usable(Protocol):
    """The models that callers may name."""

    default_model: str

    async def of_caller(self) -> Mapping[str, ServedModel | None]:
        """Return the models that the current caller may name, by name; None for those that are not loaded."""
        ...

    async def knows(self, name: str) -> bool:
        """Whether any model has this name, installed or not."""
        ...


class OnlyDefault:
    """The one model of an engine that has no pool."""

    def __init__(self, default_model: str) -> None:
        self.default_model = default_model

    async def of_caller(self) -> Mapping[str, ServedModel | None]:
        """Return the one model."""
        return {self.default_model: None}

    async def knows(self, name: str) -> bool:
        """Whether it is the one model."""
        return name == self.default_model


class UsableModels:
    """The models that a caller may name, of an engine's pool and its catalog."""

    def __init__(self, pool: Pool, catalog: Names, default_model: str) -> None:
        self._pool, self._catalog = pool, catalog
        self.default_model = default_model

    async def of_caller(self) -> dict[str, ServedModel | None]:
        """Return the models that the current caller may name, by name; None for those that are not loaded.

        They are those that are installed, or loaded although their files have been deleted. Admins may name any; users
        only those that are loaded, or that their calls may load.
        """
        installed = await asyncio.to_thread(self._installed)
        loaded = self._pool.loaded()
        if not principal.current().is_admin:
            installed = {name for name in installed if self._pool.may_load(name)}
        names = [name for name in self._catalog.names() if name in installed or name in loaded]
        # The default model may exist only in the data directory, without a name in the catalogue.
        names += sorted(({self.default_model} | set(loaded)) - set(names))
        return {name: loaded.get(name) for name in names}

    async def knows(self, name: str) -> bool:
        """Whether any model has this name, installed or not."""
        return await asyncio.to_thread(self._knows, name)

    def _knows(self, name: str) -> bool:
        return name == self.default_model or name in self._catalog.names() or self._catalog.find(name) is not None

    def _installed(self) -> set[str]:
        return {name for name in self._catalog.names() if self._catalog.find(name)}


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Lists the models of this machine; admins load and unload them."""

    NAME = "typeless.v1.ModelService"

    def __init__(self, pool: Pool, catalog: Names, default_model: str) -> None:
        self._pool = pool
        self._usable = UsableModels(pool, catalog, default_model)

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.ListModelsResponse:
        """List the models that the caller may name."""
        usable = await self._usable.of_caller()
        return models_pb2.ListModelsResponse(models=[self._message(name, model) for name, model in usable.items()])

    async def LoadModel(
        self, request: models_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.LoadModelResponse:
        """Download a model if it is not installed, load it, and return when it can be used."""
        model = await self._pool.load(_name(request.name))
        return models_pb2.LoadModelResponse(model=self._message(request.name, model))

    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.UnloadModelResponse:
        """Return when the model's running work is done and its memory is free; at once if it is not loaded."""
        name = _name(request.name)
        try:
            await self._pool.unload(name)
        except NotFound:
            # The answer to an earlier request may have been lost.
            if not await self._usable.knows(name):
                raise
        return models_pb2.UnloadModelResponse()

    def _message(self, name: str, model: ServedModel | None) -> models_pb2.Model:
        message = models_pb2.Model(name=name, loaded=model is not None, is_default=name == self._usable.default_model)
        if model is None:
            message.multilingual = is_multilingual(name, model)
            if not message.multilingual:
                message.languages.append("en")
            return message
        message.multilingual = model.is_multilingual
        message.languages.extend(model.languages)
        message.device = "cuda:0" if model.device_name == "cuda" else model.device_name
        message.compute_type = model.compute_type
        message.memory_bytes = model.memory_bytes
        return message


def is_multilingual(name: str, model: ServedModel | None) -> bool:
    """Whether a model knows several languages. Until it is loaded, only its name tells: ".en" ends the others."""
    return model.is_multilingual if model is not None else not name.endswith(".en")


def _name(name: str) -> str:
    if not name:
        raise InvalidInput("name", "is empty")
    return name
