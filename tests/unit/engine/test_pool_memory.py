"""Which models are evicted, and which are refused, so that all fit into memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from tests.unit.engine.pool_bench import PoolBench, Users, until
from tests.unit.idle import until_idle
from typeless_grpc.engine.pool import PoolOptions
from typeless_grpc.errors import NotFound, Overloaded, WrongState

# The files of models tell how much memory they take.
FOOTPRINTS = pytest.mark.parametrize("bench", [{"has_footprints": True}], indirect=True, ids=["footprints"])


# ---- the memory limit -------------------------------------------------------------------------------------------


async def test_the_least_recently_used_model_is_evicted(bench: PoolBench):
    for name in ("default", "a", "b", "a", "c"):
        await bench.used(name)
    assert sorted(bench.pool.loaded()) == ["a", "c", "default"]


async def test_the_default_model_stays_even_above_the_limit(bench: PoolBench):
    bench.loader.bytes["default"] = 100
    await bench.used("default")
    await bench.used("a")
    await bench.used("b")
    assert list(bench.pool.loaded()) == ["default"]


async def test_a_model_in_use_stays_until_its_last_call_is_done(bench: PoolBench, users: Users):
    bench.loader.bytes |= {"a": 25, "b": 25}
    first, first_done = await users("a")
    second, second_done = await users("a")
    await bench.used("b")
    assert list(bench.pool.loaded()) == ["a"]  # b was idle and went
    first_done.set()
    await first
    async with bench.pool.use("b"):
        assert sorted(bench.pool.loaded()) == ["a", "b"]
        second_done.set()
        await second
        assert list(bench.pool.loaded()) == ["b"]
    assert bench.loader.loads == ["a", "b", "b"]


async def test_an_evicted_model_is_loaded_again(bench: PoolBench):
    for name in ("default", "a", "b", "c", "a"):
        await bench.used(name)
    assert bench.loader.loads == ["default", "a", "b", "c", "a"]


async def test_an_unloaded_model_is_freed(bench: PoolBench):
    model = await bench.pool.load("a")
    reference = weakref.ref(model)
    del model
    await bench.pool.unload("a")
    await until_idle()
    gc.collect()
    assert reference() is None


# ---- memory is checked before a model is loaded -----------------------------------------------------------------


@FOOTPRINTS
async def test_a_model_that_does_not_fit_beside_those_in_use_is_refused_before_it_is_loaded(
    bench: PoolBench, users: Users
):
    begun = [await users(name) for name in ("default", "a", "b")]
    with pytest.raises(Overloaded) as caught:
        await bench.used("c")
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_DOES_NOT_FIT", True)
    assert bench.loader.loads == ["default", "a", "b"]
    assert sorted(bench.pool.loaded()) == ["a", "b", "default"]
    for using, done in begun:
        done.set()
        await using
    await bench.used("c")
    assert sorted(bench.pool.loaded()) == ["b", "c", "default"]


@pytest.mark.parametrize(("total_bytes", "fits"), [(49, False), (50, True)])
@pytest.mark.parametrize(
    "bench",
    [{"options": PoolOptions("default", max_memory_bytes=1000), "has_footprints": True}],
    indirect=True,
    ids=["much allowed"],
)
async def test_a_model_must_fit_into_the_free_memory_of_the_machine(
    bench: PoolBench, users: Users, total_bytes: int, fits: bool
):
    bench.machine.total_bytes = total_bytes
    begun = [await users(name) for name in ("default", "a")]
    await bench.used("b")  # goes for the next
    if fits:
        bench.machine.total_bytes -= 10  # 40: the two in use, and 20 for the one that is loaded
        await bench.used("c")
        assert sorted(bench.pool.loaded()) == ["a", "c", "default"]
    else:
        bench.machine.total_bytes -= 10
        with pytest.raises(Overloaded):
            await bench.used("c")
        assert sorted(bench.pool.loaded()) == ["a", "b", "default"]  # none goes for nothing
    for using, done in begun:
        done.set()
        await using


@FOOTPRINTS
async def test_models_that_are_loading_count_together(bench: PoolBench):
    bench.loader.gates |= {"a": threading.Event(), "b": threading.Event()}
    await bench.used("default")
    loading = [asyncio.create_task(bench.used(name)) for name in ("a", "b")]
    for name in ("a", "b"):
        await until(bench.loader.began[name])
    with pytest.raises(Overloaded):
        await bench.used("c")
    for gate in bench.loader.gates.values():
        gate.set()
    await asyncio.gather(*loading)
    assert bench.loader.loads == ["default", "a", "b"]


@FOOTPRINTS
async def test_a_model_that_never_fits_beside_the_default_is_refused_for_good(bench: PoolBench):
    await bench.used("default")
    bench.loader.bytes["a"] = 21
    with pytest.raises(WrongState) as caught:
        await bench.used("a")
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_TOO_LARGE", False)
    assert bench.loader.loads == ["default"]


@pytest.mark.parametrize(
    "bench",
    [{"options": PoolOptions("default", max_memory_bytes=100, loadable=frozenset({"a"}))}],
    indirect=True,
    ids=["one allowed"],
)
async def test_calls_load_allowed_models_and_use_those_that_an_admin_loaded(bench: PoolBench):
    await bench.used("default")
    await bench.used("a")
    with pytest.raises(NotFound) as caught:
        await bench.used("b")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert (bench.pool.may_load("a"), bench.pool.may_load("b")) == (True, False)
    await bench.pool.load("b")
    await bench.used("b")
