"""Tries again what fuzzing has found, and the seeds of every target, on machines without the fuzzer too."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem != "__init__")
FOUND = sorted(path for path in (HERE / "found").glob("*/*") if path.is_file())
MAX_SEEDS = 40


def target(name: str) -> Any:
    return importlib.import_module(f"tests.fuzz.targets.{name}")


@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}/{path.name}" for path in FOUND])
def test_what_was_found_does_not_happen_again(path: Path):
    target(path.parent.name).one(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_target_and_cut_ones_are_good(name: str):
    fuzzed = target(name)
    seeds = list(fuzzed.seeds())
    assert seeds
    for seed in seeds[:: max(1, len(seeds) // MAX_SEEDS)]:
        assert len(seed) <= fuzzed.MAX_BYTES
        fuzzed.one(seed)
        fuzzed.one(seed[: len(seed) // 2])
    fuzzed.one(b"")
