from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.test_catalog import a_model
from typeless_grpc.app.models import build_recognizer, parallelism
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.config import Settings
from typeless_grpc.engine.device import Device
from typeless_grpc.engine.observer import NoObserver
from typeless_grpc.errors import EngineFailed, TypelessError, WrongState


@pytest.mark.parametrize(
    ("n_cores", "expected"),
    [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (8, (2, 4)), (16, (4, 4)), (64, (8, 4))],
)
def test_at_least_two_batches_share_the_cores(n_cores: int, expected: tuple[int, int]):
    assert parallelism(Settings(), Device("cpu", "int8"), n_cores) == expected


def test_a_gpu_runs_one_batch_at_a_time():
    assert parallelism(Settings(), Device("cuda", "float16"), n_cores=8)[0] == 1


def test_settings_override_the_computed_parallelism():
    assert parallelism(Settings(engine_workers=3, cpu_threads=5), Device("cpu", "int8"), n_cores=2) == (3, 5)


@pytest.mark.parametrize(
    ("model", "settings", "error"),
    [("base", {}, EngineFailed), ("mine", {"require_approved_models": True}, WrongState)],
    ids=["other files than base has", "a model that nobody approved"],
)
async def test_a_server_does_not_load_files_that_nobody_vouches_for(
    tmp_path: Path, model: str, settings: dict[str, Any], error: type[TypelessError]
):
    a_model(tmp_path / "models" / model)
    wanted = Settings(model=model, data_dir=tmp_path, device="cpu", **settings)
    async with build_recognizer(wanted, NoObserver(), Reloads(wanted)) as built:
        with pytest.raises(error, match="approve"):
            await built.warm()
