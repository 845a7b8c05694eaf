from __future__ import annotations

import pytest

from typeless_grpc.app.models import parallelism
from typeless_grpc.config import Settings
from typeless_grpc.engine.device import Device


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
