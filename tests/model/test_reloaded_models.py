"""Reloaded settings of the engine: user_models and max_model_memory_bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from typeless_grpc.app.models import build_engine
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.config import Loaded, Settings
from typeless_grpc.errors import WrongState
from typeless_grpc.telemetry.metrics import Metrics

pytestmark = pytest.mark.model


async def reloaded(reloads: Reloads, **settings: object) -> bool:
    return await reloads.reload(lambda: Loaded(Settings(model="tiny.en", **settings), {}))  # type: ignore[arg-type]


async def test_the_allowed_models_are_reloaded_and_an_unknown_one_changes_nothing(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    settings = Settings(model="tiny.en", user_models=("tiny.en",))
    reloads = Reloads(settings)
    async with build_engine(settings, Metrics().engine, reloads) as built:
        assert not built.has_model("base")
        assert await reloaded(reloads, user_models=("base",))
        assert built.has_model("base")
        assert built.has_model("tiny.en")  # the default model
        assert not await reloaded(reloads, user_models=("bsae",))
        assert built.has_model("base")
    assert "no model is called bsae" in caplog.text


async def test_the_memory_of_models_is_reloaded():
    settings = Settings(model="tiny.en", max_model_memory_bytes=1)
    reloads = Reloads(settings)
    async with build_engine(settings, Metrics().engine, reloads) as built:
        with pytest.raises(WrongState):
            await built.models.load("base")
        assert await reloaded(reloads, max_model_memory_bytes=4 * 2**30)
        await built.models.load("base")
