from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from typeless_grpc.engine.models import ModelPool
from typeless_grpc.errors import EngineFailed, NotFound

HERE = Path("/models")


class Shelf:
    """A finder that has what it is told to have."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, name: str) -> Path | None:
        return HERE / name if name in self.names else None


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


async def test_a_model_is_loaded_once_for_all_who_ask(threads: Executor):
    loads: list[str] = []
    gate = threading.Event()

    def load(name: str, directory: Path) -> str:
        gate.wait(10)
        loads.append(name)
        return str(directory)

    pool = ModelPool(Shelf("base"), load, threads)
    asked = [asyncio.create_task(pool.get("base")) for _ in range(5)]
    assert pool.loaded("base") is None
    gate.set()
    assert await asyncio.gather(*asked) == ["/models/base"] * 5
    assert loads == ["base"]
    assert pool.loaded("base") == "/models/base"


async def test_a_model_that_is_not_here_is_not_found(threads: Executor):
    pool = ModelPool(Shelf(), lambda name, directory: name, threads)
    with pytest.raises(NotFound, match="'large'") as caught:
        await pool.get("large")
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_a_load_that_failed_is_tried_again(threads: Executor):
    outcomes: list[str | Exception] = [EngineFailed("no memory"), "loaded"]

    def load(name: str, directory: Path) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    pool = ModelPool(Shelf("base"), load, threads)
    with pytest.raises(EngineFailed):
        await pool.get("base")
    assert pool.loaded("base") is None
    assert await pool.get("base") == "loaded"


async def test_a_caller_that_goes_away_does_not_take_the_model_from_the_others(threads: Executor):
    gate = threading.Event()

    def load(name: str, directory: Path) -> str:
        gate.wait(10)
        return name

    pool = ModelPool(Shelf("base"), load, threads)
    impatient, patient = asyncio.create_task(pool.get("base")), asyncio.create_task(pool.get("base"))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    gate.set()
    assert await patient == "base"


async def test_a_model_found_later_can_be_used_without_a_restart(threads: Executor):
    shelf = Shelf()
    pool = ModelPool(shelf, lambda name, directory: name, threads)
    with pytest.raises(NotFound):
        await pool.get("base")
    shelf.names = ("base",)
    assert await pool.get("base") == "base"
