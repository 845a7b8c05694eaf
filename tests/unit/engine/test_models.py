from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.models import ModelPool, PoolOptions
from typeless_grpc.errors import EngineFailed, NotFound, WrongState

HERE = Path("/models")


@dataclass(frozen=True)
class Model:
    name: str
    memory_bytes: int = 100


class Shelf:
    """A finder that has what it is told to have, and can fetch a few more."""

    def __init__(self, *here: str, can_fetch: tuple[str, ...] = ()) -> None:
        self.here = set(here)
        self.can_fetch = can_fetch

    def find(self, name: str) -> Path | None:
        return HERE / name if name in self.here else None

    def get(self, name: str) -> Path:
        if name in self.can_fetch:
            self.here.add(name)
        if found := self.find(name):
            return found
        raise NotFound(f"No model is called '{name}'.", reason="MODEL_NOT_FOUND")


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


Load = Callable[[str, Path], Model]


def pool_of(
    threads: Executor, shelf: Shelf, load: Load = lambda name, directory: Model(name), *, max_bytes: int = 1000
) -> tuple[ModelPool[Model], FakeClock]:
    clock = FakeClock()
    return ModelPool(shelf, load, threads, clock, PoolOptions("base", max_bytes)), clock


async def use(pool: ModelPool[Model], clock: FakeClock, *names: str) -> None:
    """Use models one after the other, a second each."""
    for name in names:
        async with pool.use(name):
            clock.advance(1)


async def test_a_model_is_loaded_once_for_all_who_ask(threads: Executor):
    loads: list[str] = []
    gate = threading.Event()

    def load(name: str, directory: Path) -> Model:
        gate.wait(10)
        loads.append(str(directory))
        return Model(name)

    pool, _ = pool_of(threads, Shelf("base"), load)
    asked = [asyncio.create_task(pool.load("base")) for _ in range(5)]
    gate.set()
    assert await asyncio.gather(*asked) == [Model("base")] * 5
    assert loads == ["/models/base"]
    assert pool.loaded() == {"base": Model("base")}


async def test_a_call_never_fetches_a_model_and_an_operator_does(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", can_fetch=("tiny",)))
    with pytest.raises(NotFound, match="'tiny'") as caught:
        await use(pool, clock, "tiny")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert await pool.load("tiny") == Model("tiny")
    await use(pool, clock, "tiny")


async def test_a_model_nobody_has_is_not_found(threads: Executor):
    pool, _ = pool_of(threads, Shelf("base"))
    with pytest.raises(NotFound):
        await pool.load("nonesuch")
    assert pool.loaded() == {}


async def test_a_load_that_failed_is_forgotten_and_tried_again(threads: Executor):
    outcomes: list[Model | Exception] = [EngineFailed("no memory"), Model("base")]

    def load(name: str, directory: Path) -> Model:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    pool, _ = pool_of(threads, Shelf("base"), load)
    with pytest.raises(EngineFailed):
        await pool.load("base")
    assert pool.loaded() == {}
    assert await pool.load("base") == Model("base")


async def test_a_caller_that_goes_away_does_not_take_the_model_from_the_others(threads: Executor):
    began, gate = threading.Event(), threading.Event()

    def load(name: str, directory: Path) -> Model:
        began.set()
        gate.wait(10)
        return Model(name)

    pool, _ = pool_of(threads, Shelf("base"), load)
    impatient, patient = asyncio.create_task(pool.load("base")), asyncio.create_task(pool.load("base"))
    await asyncio.to_thread(began.wait, 10)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    gate.set()
    assert await patient == Model("base")


async def test_above_the_memory_limit_the_model_unused_for_longest_goes(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", "a", "b", "c"), max_bytes=300)
    await use(pool, clock, "base", "a", "b", "a", "c")
    assert set(pool.loaded()) == {"base", "a", "c"}


async def test_the_default_model_stays_even_where_it_alone_is_too_much(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", "a"), max_bytes=10)
    await use(pool, clock, "base", "a")
    assert set(pool.loaded()) == {"base"}


async def test_a_model_in_use_is_not_taken_away(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", "a", "b"), max_bytes=200)
    await use(pool, clock, "base")
    async with pool.use("a"):
        await use(pool, clock, "b")
        assert "a" in pool.loaded()
    assert set(pool.loaded()) == {"base", "a"}


async def test_unloading_waits_for_the_work_in_progress(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", "a"))
    async with pool.use("a"):
        unloading = asyncio.create_task(pool.unload("a"))
        done, _ = await asyncio.wait([unloading], timeout=0.05)
        assert not done
        assert "a" not in pool.loaded()
    await asyncio.wait_for(unloading, 10)
    await use(pool, clock, "a")
    assert "a" in pool.loaded()


async def test_what_is_not_loaded_cannot_be_unloaded_nor_can_the_default(threads: Executor):
    pool, clock = pool_of(threads, Shelf("base", "a"))
    await use(pool, clock, "base")
    with pytest.raises(NotFound):
        await pool.unload("a")
    with pytest.raises(WrongState) as caught:
        await pool.unload("base")
    assert caught.value.reason == "MODEL_IS_DEFAULT"
    assert set(pool.loaded()) == {"base"}
