"""ModelService over a real channel, with a real pool of models that are no models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.harness import serving
from tests.service.test_transcribe import refused
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.pool import ModelPool, PoolOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import NotFound, SourceUnavailable
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc
from typeless_grpc.servicers.models import ModelServicer


@dataclass(frozen=True)
class Model:
    """What the service shows of a loaded model."""

    name: str
    memory_bytes: int = 77
    is_multilingual: bool = True
    languages: tuple[str, ...] = ("en", "de")
    device_name: str = "cpu"
    compute_type: str = "int8"


class Shelf:
    """base and tiny.en are here, small can be fetched, large is known and cannot be had."""

    def __init__(self) -> None:
        self.here = {"base", "tiny.en"}

    def names(self) -> list[str]:
        return ["base", "tiny.en", "small", "large"]

    def find(self, name: str) -> Path | None:
        return Path("/models") / name if name in self.here else None

    def get(self, name: str) -> Path:
        if name not in self.names():
            raise NotFound(f"No model is called '{name}'.", reason="MODEL_NOT_FOUND")
        if name == "large":
            raise SourceUnavailable("Model 'large' cannot be had.", reason="MODEL_UNAVAILABLE")
        self.here.add(name)
        return Path("/models") / name


@pytest.fixture
async def models() -> AsyncIterator[models_pb2_grpc.ModelServiceStub]:
    shelf = Shelf()
    with ThreadPoolExecutor(2) as threads:
        pool = ModelPool(
            shelf,
            lambda name, directory: Model(name),
            threads,
            FakeClock(),
            PoolOptions("base", max_memory_bytes=2**30),
        )
        await pool.load("base")
        async with serving(ScriptedEngine(), more=[ModelServicer(pool, shelf, "base")]) as served:
            yield models_pb2_grpc.ModelServiceStub(served.channel)


async def listed(models: models_pb2_grpc.ModelServiceStub) -> dict[str, models_pb2.Model]:
    answer = await models.ListModels(models_pb2.ListModelsRequest())
    return {model.name: model for model in answer.models}


async def test_the_models_on_this_machine_are_listed(models):
    found = await listed(models)
    assert set(found) == {"base", "tiny.en"}
    assert found["base"] == models_pb2.Model(
        name="base",
        multilingual=True,
        languages=["en", "de"],
        loaded=True,
        is_default=True,
        device="cpu",
        compute_type="int8",
        memory_bytes=77,
    )
    assert found["tiny.en"] == models_pb2.Model(name="tiny.en", languages=["en"])


async def test_a_model_is_downloaded_loaded_and_unloaded_on_request(models):
    answer = await models.LoadModel(models_pb2.LoadModelRequest(name="small"))
    assert answer.model.loaded
    assert (await listed(models))["small"].loaded
    for _ in range(2):  # an answer may be lost, and the request repeated
        await models.UnloadModel(models_pb2.UnloadModelRequest(name="small"))
        assert not (await listed(models))["small"].loaded


@pytest.mark.parametrize(
    ("call", "name", "code", "reason"),
    [
        ("LoadModel", "", "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("LoadModel", "nonesuch", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("LoadModel", "large", "UNAVAILABLE", "MODEL_UNAVAILABLE"),
        ("UnloadModel", "", "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("UnloadModel", "nonesuch", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("UnloadModel", "base", "FAILED_PRECONDITION", "MODEL_IS_DEFAULT"),
    ],
)
async def test_an_impossible_request_is_refused(models, call: str, name: str, code: str, reason: str):
    message = getattr(models_pb2, f"{call}Request")(name=name)
    failed = await refused(getattr(models, call)(message))
    assert (failed.code, failed.reason) == (grpc.StatusCode[code], reason)
