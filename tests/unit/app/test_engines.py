"""How many engine processes a server starts, and which cores each has."""

from __future__ import annotations

from pathlib import Path

import pytest

from typeless_grpc.app import engines
from typeless_grpc.app.cores import shares
from typeless_grpc.app.engines import n_processes
from typeless_grpc.config import Settings


@pytest.mark.parametrize(
    ("n_cores", "n", "expected"),
    [
        (4, 2, [(0, 1), (2, 3)]),
        (7, 3, [(0, 1), (2, 3, 4), (5, 6)]),
        (2, 2, [(0,), (1,)]),
        (2, 3, [(0,), (1,), (0,)]),
        (3, 1, [(0, 1, 2)]),
    ],
)
def test_processes_share_the_cores(n_cores: int, n: int, expected: list[tuple[int, ...]]):
    assert shares(range(n_cores), n) == expected


@pytest.mark.parametrize(
    ("n_cores", "gpus", "free_gib", "device", "expected"),
    [
        (2, 0, 4, "auto", 1),
        (8, 0, 16, "auto", 1),
        (64, 0, 64, "auto", 8),
        (64, 0, 4, "auto", 3),  # half of the memory holds three
        (64, 4, 4, "auto", 4),
        (64, 4, 64, "cpu", 8),
        (64, 0, 0.1, "auto", 1),
    ],
)
def test_auto_goes_by_gpus_cores_and_memory(
    n_cores: int,
    gpus: int,
    free_gib: float,
    device: str,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (model / name).write_bytes(b"")
    with (model / "model.bin").open("wb") as file:
        file.truncate(150 * 1024**2)
    monkeypatch.setattr(engines, "n_cores", lambda: n_cores)
    monkeypatch.setattr(engines, "n_gpus", lambda: gpus)
    monkeypatch.setattr(engines, "free_bytes", lambda: int(free_gib * 1024**3))
    settings = Settings(engine_processes="auto", device=device, model=str(model), data_dir=tmp_path)
    assert n_processes(settings) == expected


def test_a_number_is_taken_as_it_is():
    assert n_processes(Settings(engine_processes=3)) == 3
    assert n_processes(Settings()) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"engine_processes": 0}, "engine_processes"),
        ({"engine_processes": "many"}, "engine_processes"),
        ({"engine_address": "host"}, "HOST:PORT"),
        ({"engine_address": "host:99999"}, "HOST:PORT"),
        ({"engine_address": "::1:50052"}, "HOST:PORT"),
        ({"engine_address": "a:1,a:1"}, "twice"),
        ({"engine_address": "a:1", "engine_processes": 2}, "either"),
        ({"engine_listen": "0.0.0.0:50052"}, "engine_key"),
        ({"engine_listen": "127.0.0.1:50052", "engine_key": "short"}, "fewer than 20"),
        ({"engine_ca_file": "ca.pem"}, "no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, object], why: str):
    with pytest.raises(ValueError, match=why):
        Settings(**given)


def test_an_engine_may_listen_on_loopback_without_a_key_and_elsewhere_with_one():
    assert Settings(engine_listen="[::1]:50052").engine_listen == "[::1]:50052"
    assert Settings(engine_listen="0.0.0.0:50052", engine_key="a-key-of-more-than-20-characters")
