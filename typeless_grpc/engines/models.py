"""The models of a group of engines, for `ModelServicer`. A model that is loaded on one engine is loaded on all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.engine.tasks import gather
from typeless_grpc.engines.connection import EngineLost
from typeless_grpc.engines.remote import RemoteEngine
from typeless_grpc.errors import NotFound, Overloaded, TypelessError
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

LOAD_EVERY_S = 1.0  # interval of checks for engines that lack a model which an admin has loaded


@dataclass(frozen=True)
class GroupModel:
    """A model that engines have loaded. memory_bytes: of all of them together."""

    memory_bytes: int
    is_multilingual: bool
    languages: Sequence[str]
    device_name: str
    compute_type: str


class GroupModels:
    """Loads and unloads models on all engines, and knows their names."""

    def __init__(self, engines: Sequence[RemoteEngine]) -> None:
        self._engines = engines
        self._wanted: set[str] = set()  # loaded by admins; an engine that is started again loads them too

    def names(self) -> list[str]:
        """Return all names that an engine knows."""
        return list(dict.fromkeys(name for engine in self._engines for name in engine.models))

    def find(self, name: str) -> str | None:
        """Return the name if a model is on an engine's machine, else None."""
        return name if any(model.is_installed for model in self._reported(name)) else None

    def may_load(self, name: str) -> bool:
        """Whether calls may load a model."""
        return any(model.may_load for model in self._reported(name))

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of each loaded model, in bytes, of all engines together."""
        return {name: model.memory_bytes for name, model in self.loaded().items()}

    def loaded(self) -> dict[str, GroupModel]:
        """Return the models that an engine has loaded."""
        loaded = {name: [one.loaded for one in self._reported(name) if one.HasField("loaded")] for name in self.names()}
        return {name: _model(models) for name, models in loaded.items() if models}

    async def load(self, name: str) -> GroupModel:
        """Load a model on all engines that are up. Raises as `ModelPool.load`, or Overloaded if no engine is up."""
        engines = self._up()
        first = await engines[0].load(name)  # alone, so that it is downloaded once
        rest = await gather([engine.load(name) for engine in engines[1:]])
        self._wanted.add(name)
        return _model([first, *rest])

    async def unload(self, name: str) -> None:
        """Unload a model on all engines. Raises as `ModelPool.unload`, or Overloaded if no engine is up."""
        self._wanted.discard(name)
        n_unknown = 0
        engines = self._up()
        for engine in engines:
            try:
                await engine.unload(name)
            except NotFound:
                n_unknown += 1
                if n_unknown == len(engines):
                    raise

    async def run(self) -> None:
        """Load what admins have loaded on engines that lack it, until cancelled."""
        refused: set[tuple[str, int, str]] = set()
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            for engine in [one for one in self._engines if one.is_up]:
                for name in sorted(self._wanted):
                    attempt = (engine.name, engine.generation, name)
                    reported = engine.models.get(name)
                    if attempt in refused or (reported is not None and reported.HasField("loaded")):
                        continue
                    try:
                        await engine.load(name)
                    except EngineLost:
                        continue
                    except TypelessError as error:
                        refused.add(attempt)
                        log.warning("engine does not load a model", engine=engine.name, model=name, why=error.message)

    def _up(self) -> list[RemoteEngine]:
        up = [engine for engine in self._engines if engine.is_up]
        if not up:
            raise Overloaded("No engine is up.", reason="ENGINE_UNAVAILABLE", retry_after_s=2.0)
        return up

    def _reported(self, name: str) -> list[pb.Model]:
        return [engine.models[name] for engine in self._engines if name in engine.models]


def _model(loaded: Sequence[pb.LoadedModel]) -> GroupModel:
    first = loaded[0]
    return GroupModel(
        memory_bytes=sum(one.memory_bytes for one in loaded),
        is_multilingual=first.is_multilingual,
        languages=tuple(first.languages),
        device_name=first.device_name,
        compute_type=first.compute_type,
    )
