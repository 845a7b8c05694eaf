"""What ModelService shows of each model; the calls themselves are in tests/service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from typeless_grpc.access import principal
from typeless_grpc.access.principal import Principal, Role
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import models_pb2
from typeless_grpc.servicers.models import ModelServicer


@dataclass(frozen=True)
class FakeModel:
    memory_bytes: int = 123
    is_multilingual: bool = True
    languages: tuple[str, ...] = ("en", "de")
    device_name: str = "cpu"
    compute_type: str = "int8"


@dataclass
class FakePool:
    in_memory: dict[str, FakeModel] = field(default_factory=dict)
    loadable: frozenset[str] | None = None

    def may_load(self, name: str) -> bool:
        return self.loadable is None or name in self.loadable

    def loaded(self) -> dict[str, Any]:
        return self.in_memory

    async def load(self, name: str) -> FakeModel:
        return self.in_memory.setdefault(name, FakeModel())

    async def unload(self, name: str) -> None:
        del self.in_memory[name]


@dataclass(frozen=True)
class Names:
    known: tuple[str, ...]
    here: frozenset[str]

    def names(self) -> list[str]:
        return list(self.known)

    def find(self, name: str) -> Path | None:
        return Path(name) if name in self.here else None


async def listed(servicer: ModelServicer) -> list[models_pb2.Model]:
    answer = await servicer.ListModels(models_pb2.ListModelsRequest(), None)  # type: ignore[arg-type]
    return list(answer.models)


def servicer(
    *here: str, known: tuple[str, ...] = ("base", "tiny.en", "small"), **in_memory: FakeModel
) -> ModelServicer:
    return ModelServicer(FakePool(in_memory), Names(known, frozenset(here)), "base")


async def test_only_installed_models_are_listed():
    assert [model.name for model in await listed(servicer("base", "tiny.en"))] == ["base", "tiny.en"]


@pytest.mark.parametrize(
    "served",
    [
        pytest.param(servicer("base", "small"), id="of the catalogue"),
        pytest.param(servicer("base", known=("small",)), id="known only to the data directory"),
        pytest.param(servicer(), id="its files deleted"),
        pytest.param(servicer(base=FakeModel()), id="in memory, its files deleted"),
    ],
)
async def test_exactly_one_model_is_the_default_and_it_is_always_listed(served: ModelServicer):
    models = await listed(served)
    assert [model.name for model in models if model.is_default] == ["base"]
    assert len({model.name for model in models}) == len(models)


async def test_a_model_in_memory_is_listed_even_if_its_files_are_deleted():
    models = {model.name: model for model in await listed(servicer("base", small=FakeModel(), mine=FakeModel()))}
    assert {name for name, model in models.items() if model.loaded} == {"small", "mine"}


async def test_until_a_model_is_loaded_its_languages_follow_from_its_name():
    base, tiny = await listed(servicer("base", "tiny.en"))
    assert base == models_pb2.Model(name="base", is_default=True, multilingual=True)
    assert tiny == models_pb2.Model(name="tiny.en", languages=["en"])


@pytest.mark.parametrize(("device", "shown"), [("cpu", "cpu"), ("cuda", "cuda:0")])
async def test_a_loaded_model_is_shown_in_full(device: str, shown: str):
    (model,) = await listed(servicer("base", base=FakeModel(device_name=device)))
    assert model == models_pb2.Model(
        name="base",
        loaded=True,
        is_default=True,
        multilingual=True,
        languages=["en", "de"],
        device=shown,
        compute_type="int8",
        memory_bytes=123,
    )


async def test_loading_answers_with_the_loaded_model():
    answer = await servicer("base").LoadModel(models_pb2.LoadModelRequest(name="small"), None)  # type: ignore[arg-type]
    assert (answer.model.name, answer.model.loaded, answer.model.memory_bytes) == ("small", True, 123)


@pytest.mark.parametrize("call", ["LoadModel", "UnloadModel"])
async def test_a_model_must_be_named(call: str):
    request = getattr(models_pb2, f"{call}Request")()
    with pytest.raises(InvalidInput) as caught:
        await getattr(servicer("base"), call)(request, None)
    assert caught.value.violations[0].field == "name"


@pytest.mark.parametrize(
    ("role", "shown"), [(Role.USER, ["base", "tiny.en"]), (Role.ADMIN, ["base", "tiny.en", "small"])]
)
async def test_users_see_the_models_that_they_may_use(role: Role, shown: list[str]):
    pool = FakePool({"tiny.en": FakeModel()}, frozenset({"base"}))  # an admin had it loaded
    names = Names(("base", "tiny.en", "small"), frozenset({"base", "tiny.en", "small"}))
    token = principal.enter(Principal("key:1", "key:1", role))
    try:
        found = await listed(ModelServicer(pool, names, "base"))
    finally:
        principal.leave(token)
    assert [model.name for model in found] == shown
