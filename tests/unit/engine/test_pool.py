from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.unit.engine.pool_bench import PoolBench, Users, until
from tests.unit.idle import until_idle
from typeless_grpc.errors import EngineFailed, NotFound, SourceUnavailable, WrongState

# ---- loading ----------------------------------------------------------------------------------------------------


async def test_a_model_is_loaded_once_for_concurrent_calls(bench: PoolBench):
    gate = bench.loader.gates["a"] = threading.Event()
    calls = [asyncio.create_task(bench.used("a")) for _ in range(5)]
    await until(bench.loader.began["a"])
    assert bench.pool.loaded() == {}
    gate.set()
    await asyncio.gather(*calls)
    await bench.used("a")
    assert bench.loader.loads == ["a"]
    assert list(bench.pool.loaded()) == ["a"]


async def test_a_failed_load_fails_all_waiting_calls_and_is_retried_by_the_next(bench: PoolBench):
    gate = bench.loader.gates["a"] = threading.Event()
    bench.loader.fails["a"] = 1
    calls = [asyncio.create_task(bench.used("a")) for _ in range(3)]
    await until(bench.loader.began["a"])
    gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineFailed] * 3
    assert bench.pool.loaded() == {}
    await bench.used("a")
    assert bench.loader.loads == ["a", "a"]


async def test_a_call_does_not_download_a_model(bench: PoolBench):
    bench.source.far.add("far")
    with pytest.raises(NotFound) as caught:
        await bench.used("far")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert bench.source.gets == []


async def test_a_cancelled_call_does_not_stop_the_load_for_the_others(bench: PoolBench):
    gate = bench.loader.gates["a"] = threading.Event()
    cancelled, other = asyncio.create_task(bench.used("a")), asyncio.create_task(bench.used("a"))
    await until(bench.loader.began["a"])
    cancelled.cancel()
    await until_idle()
    gate.set()
    await other
    assert cancelled.cancelled()
    assert bench.loader.loads == ["a"]


async def test_loading_one_model_does_not_delay_calls_for_another(bench: PoolBench):
    await bench.used("a")
    bench.loader.gates["b"] = threading.Event()
    loading = asyncio.create_task(bench.pool.load("b"))
    await until(bench.loader.began["b"])
    await asyncio.wait_for(bench.used("a"), 30)  # loaded already
    await asyncio.wait_for(bench.used("c"), 30)  # loaded now, beside it
    assert not loading.done()
    bench.loader.gates["b"].set()
    await loading


async def test_a_load_fetches_the_model_once_for_concurrent_calls(bench: PoolBench):
    bench.source.far.add("far")
    loads = [asyncio.create_task(bench.pool.load("far")) for _ in range(3)]
    await until(bench.source.began)
    loads[0].cancel()
    await until_idle()
    await asyncio.wait_for(bench.used("a"), 30)  # a download holds up nobody
    bench.source.gate.set()
    assert (await loads[1]).name == (await loads[2]).name == "far"
    assert (bench.source.gets, bench.loader.loads.count("far")) == (["far"], 1)


async def test_a_failed_fetch_is_retried_by_the_next_call(bench: PoolBench, monkeypatch: pytest.MonkeyPatch):
    def unreachable(name: str) -> Path:
        raise SourceUnavailable("no network", reason="MODEL_UNAVAILABLE")

    with monkeypatch.context() as patch:
        patch.setattr(bench.source, "get", unreachable)
        with pytest.raises(SourceUnavailable):
            await bench.pool.load("far")
    bench.source.far.add("far")
    bench.source.gate.set()
    assert (await bench.pool.load("far")).name == "far"


async def test_loading_a_loaded_model_changes_nothing(bench: PoolBench):
    first = await bench.pool.load("a")
    assert await bench.pool.load("a") is first
    assert bench.loader.loads == ["a"]


# ---- unloading --------------------------------------------------------------------------------------------------


async def test_unloading_waits_for_work_in_progress(bench: PoolBench, users: Users):
    using, done = await users("a")
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    assert not unloading.done()
    assert bench.pool.loaded() == {}
    done.set()
    await unloading
    assert (await using).name == "a"


async def test_a_call_during_unloading_loads_the_model_again(bench: PoolBench, users: Users):
    old, done = await users("a")
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    await bench.used("a")
    assert not unloading.done()
    done.set()
    await asyncio.gather(unloading, old)
    assert bench.loader.loads == ["a", "a"]
    assert list(bench.pool.loaded()) == ["a"]


async def test_unloading_a_loading_model_waits_for_its_calls(bench: PoolBench):
    gate = bench.loader.gates["a"] = threading.Event()
    using = asyncio.create_task(bench.used("a"))
    await until(bench.loader.began["a"])
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    assert not unloading.done()
    gate.set()
    await asyncio.gather(using, unloading)
    assert bench.pool.loaded() == {}


async def test_the_default_model_is_not_unloaded(bench: PoolBench):
    await bench.used("default")
    with pytest.raises(WrongState) as caught:
        await bench.pool.unload("default")
    assert caught.value.reason == "MODEL_IS_DEFAULT"
    assert list(bench.pool.loaded()) == ["default"]


@pytest.mark.parametrize("name", ["a", "nobody knows"])
async def test_unloading_a_model_that_is_not_loaded_is_not_found(bench: PoolBench, name: str):
    with pytest.raises(NotFound) as caught:
        await bench.pool.unload(name)
    assert caught.value.reason == "MODEL_NOT_FOUND"
