from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.pool import Footprint, ModelPool, PoolOptions
from typeless_grpc.errors import EngineFailed, NotFound, Overloaded, SourceUnavailable, WrongState

HERE = Path("models")


@dataclass(eq=False)
class FakeModel:
    name: str
    memory_bytes: int = 10


@dataclass
class Shelf:
    """Where models lie: `here` without a network, `far` after a download that `gate` holds back."""

    here: set[str] = field(default_factory=set)
    far: set[str] = field(default_factory=set)
    gets: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def find(self, name: str) -> Path | None:
        return HERE / name if name in self.here else None

    def get(self, name: str) -> Path:
        if name in self.here:
            return HERE / name
        if name not in self.far:
            raise NotFound("No such model.", reason="MODEL_NOT_FOUND")
        self.gets.append(name)
        self.asked.set()
        assert self.gate.wait(10)
        self.here.add(name)
        return HERE / name


class Loader:
    """Loads fake models. began: set once it is called for one. gates: what to wait for before one is loaded.

    fails: how often to fail with it.
    """

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.began = {name: threading.Event() for name in ("default", "a", "b", "c", "far")}
        self.gates: dict[str, threading.Event] = {}
        self.fails: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def __call__(self, name: str, directory: Path) -> FakeModel:
        assert directory == HERE / name
        self.loads.append(name)
        self.began[name].set()
        if gate := self.gates.get(name):
            assert gate.wait(10)
        if self.fails.get(name, 0):
            self.fails[name] -= 1
            raise EngineFailed("broken", reason="MODEL_LOAD_FAILED")
        return FakeModel(name, self.bytes.get(name, 10))


@dataclass
class Bench:
    pool: ModelPool[FakeModel]
    shelf: Shelf
    loader: Loader
    clock: FakeClock

    async def used(self, name: str) -> None:
        """Use a model for a moment, and let a second pass."""
        async with self.pool.use(name) as model:
            assert model.name == name
        self.clock.advance(1.0)


Users = Callable[[str], Awaitable[tuple[asyncio.Task[FakeModel], asyncio.Event]]]


@pytest.fixture
def bench() -> Iterator[Bench]:
    shelf, loader, clock = Shelf({"default", "a", "b", "c"}), Loader(), FakeClock()
    with ThreadPoolExecutor(3) as threads:
        options = PoolOptions("default", max_memory_bytes=30)
        yield Bench(ModelPool(shelf, loader, threads, clock, options), shelf, loader, clock)
        for gate in [*loader.gates.values(), shelf.gate]:
            gate.set()


@pytest.fixture
def users(bench: Bench) -> Users:
    """Begin to use a model, and use it until the event is set."""

    async def begin(name: str) -> tuple[asyncio.Task[FakeModel], asyncio.Event]:
        began, done = asyncio.Event(), asyncio.Event()

        async def use() -> FakeModel:
            async with bench.pool.use(name) as model:
                began.set()
                await done.wait()
                return model

        using = asyncio.create_task(use())
        await began.wait()
        return using, done

    return begin


async def until(event: threading.Event) -> None:
    """Wait for what happens in another thread."""
    assert await asyncio.to_thread(event.wait, 10)


# ---- loading ----------------------------------------------------------------------------------------------------


async def test_a_model_is_loaded_once_for_all_who_ask(bench: Bench):
    gate = bench.loader.gates["a"] = threading.Event()
    calls = [asyncio.create_task(bench.used("a")) for _ in range(5)]
    await until(bench.loader.began["a"])
    assert bench.pool.loaded() == {}
    gate.set()
    await asyncio.gather(*calls)
    await bench.used("a")
    assert bench.loader.loads == ["a"]
    assert list(bench.pool.loaded()) == ["a"]


async def test_a_load_that_failed_is_told_to_all_who_waited_and_tried_again(bench: Bench):
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


async def test_a_model_that_is_not_here_is_not_found_and_not_downloaded(bench: Bench):
    bench.shelf.far.add("far")
    with pytest.raises(NotFound) as caught:
        await bench.used("far")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert bench.shelf.gets == []


async def test_a_caller_that_goes_away_does_not_take_the_model_from_the_others(bench: Bench):
    gate = bench.loader.gates["a"] = threading.Event()
    impatient, patient = asyncio.create_task(bench.used("a")), asyncio.create_task(bench.used("a"))
    await until(bench.loader.began["a"])
    impatient.cancel()
    await until_idle()
    gate.set()
    await patient
    assert impatient.cancelled()
    assert bench.loader.loads == ["a"]


async def test_loading_one_model_holds_up_nobody_who_uses_another(bench: Bench):
    await bench.used("a")
    bench.loader.gates["b"] = threading.Event()
    loading = asyncio.create_task(bench.pool.load("b"))
    await until(bench.loader.began["b"])
    await asyncio.wait_for(bench.used("a"), 5)  # loaded already
    await asyncio.wait_for(bench.used("c"), 5)  # loaded now, beside it
    assert not loading.done()
    bench.loader.gates["b"].set()
    await loading


async def test_asked_to_load_it_is_fetched_once_for_all_who_ask(bench: Bench):
    bench.shelf.far.add("far")
    loads = [asyncio.create_task(bench.pool.load("far")) for _ in range(3)]
    await until(bench.shelf.asked)
    loads[0].cancel()
    await until_idle()
    await asyncio.wait_for(bench.used("a"), 5)  # a download holds up nobody
    bench.shelf.gate.set()
    assert (await loads[1]).name == (await loads[2]).name == "far"
    assert (bench.shelf.gets, bench.loader.loads.count("far")) == (["far"], 1)


async def test_a_fetch_that_failed_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def unreachable(name: str) -> Path:
        raise SourceUnavailable("no network", reason="MODEL_UNAVAILABLE")

    with monkeypatch.context() as patch:
        patch.setattr(bench.shelf, "get", unreachable)
        with pytest.raises(SourceUnavailable):
            await bench.pool.load("far")
    bench.shelf.far.add("far")
    bench.shelf.gate.set()
    assert (await bench.pool.load("far")).name == "far"


async def test_loading_what_is_loaded_changes_nothing(bench: Bench):
    first = await bench.pool.load("a")
    assert await bench.pool.load("a") is first
    assert bench.loader.loads == ["a"]


# ---- the memory bound -------------------------------------------------------------------------------------------


async def test_over_the_bound_the_model_unused_for_longest_goes(bench: Bench):
    for name in ("default", "a", "b", "a", "c"):
        await bench.used(name)
    assert sorted(bench.pool.loaded()) == ["a", "c", "default"]


async def test_the_default_model_stays_even_above_the_bound(bench: Bench):
    bench.loader.bytes["default"] = 100
    await bench.used("default")
    await bench.used("a")
    await bench.used("b")
    assert list(bench.pool.loaded()) == ["default"]


async def test_a_model_in_use_stays_until_its_last_call_is_done(bench: Bench, users: Users):
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


async def test_what_was_unloaded_for_room_is_loaded_again(bench: Bench):
    for name in ("default", "a", "b", "c", "a"):
        await bench.used(name)
    assert bench.loader.loads == ["default", "a", "b", "c", "a"]


async def test_a_model_that_went_is_freed(bench: Bench):
    model = await bench.pool.load("a")
    gone = weakref.ref(model)
    del model
    await bench.pool.unload("a")
    await until_idle()
    gc.collect()
    assert gone() is None


# ---- unloading --------------------------------------------------------------------------------------------------


async def test_unloading_waits_for_work_in_progress(bench: Bench, users: Users):
    using, done = await users("a")
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    assert not unloading.done()
    assert bench.pool.loaded() == {}
    done.set()
    await unloading
    assert (await using).name == "a"


async def test_a_call_that_comes_while_it_is_unloaded_loads_it_again(bench: Bench, users: Users):
    old, done = await users("a")
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    await bench.used("a")
    assert not unloading.done()
    done.set()
    await asyncio.gather(unloading, old)
    assert bench.loader.loads == ["a", "a"]
    assert list(bench.pool.loaded()) == ["a"]


async def test_unloading_what_is_still_loading_waits_for_those_who_want_it(bench: Bench):
    gate = bench.loader.gates["a"] = threading.Event()
    using = asyncio.create_task(bench.used("a"))
    await until(bench.loader.began["a"])
    unloading = asyncio.create_task(bench.pool.unload("a"))
    await until_idle()
    assert not unloading.done()
    gate.set()
    await asyncio.gather(using, unloading)
    assert bench.pool.loaded() == {}


async def test_the_default_model_is_not_unloaded(bench: Bench):
    await bench.used("default")
    with pytest.raises(WrongState) as caught:
        await bench.pool.unload("default")
    assert caught.value.reason == "MODEL_IS_DEFAULT"
    assert list(bench.pool.loaded()) == ["default"]


@pytest.mark.parametrize("name", ["a", "nobody knows"])
async def test_unloading_what_is_not_loaded_is_not_found(bench: Bench, name: str):
    with pytest.raises(NotFound) as caught:
        await bench.pool.unload(name)
    assert caught.value.reason == "MODEL_NOT_FOUND"


# ---- memory is looked at before a model is loaded ---------------------------------------------------------------


@dataclass
class Machine:
    """Memory of a machine: bytes that nothing uses, but for what the models of a bench's pool take."""

    total_bytes: int = 1000
    bench: Bench | None = None

    def free_bytes(self) -> int:
        assert self.bench is not None
        return self.total_bytes - sum(model.memory_bytes for model in self.bench.pool.loaded().values())


@pytest.fixture
def machine(bench: Bench) -> Machine:
    """The bench's pool again, for models that take 10 bytes, and 20 while they are loaded."""
    machine = Machine(bench=bench)
    bench.pool._footprint = lambda directory: Footprint(loaded=bench.loader.bytes.get(directory.name, 10), loading=20)
    bench.pool._free_bytes = machine.free_bytes
    return machine


async def test_a_model_that_does_not_fit_beside_those_in_use_is_refused_before_it_is_loaded(
    bench: Bench, users: Users, machine: Machine
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
async def test_a_model_must_fit_into_what_the_machine_has_free(
    bench: Bench, users: Users, machine: Machine, total_bytes: int, fits: bool
):
    machine.total_bytes = total_bytes
    bench.pool._options = PoolOptions("default", max_memory_bytes=1000)
    begun = [await users(name) for name in ("default", "a")]
    await bench.used("b")  # goes for the next
    if fits:
        machine.total_bytes -= 10  # 40: the two in use, and 20 for the one that is loaded
        await bench.used("c")
        assert sorted(bench.pool.loaded()) == ["a", "c", "default"]
    else:
        machine.total_bytes -= 10
        with pytest.raises(Overloaded):
            await bench.used("c")
        assert sorted(bench.pool.loaded()) == ["a", "b", "default"]  # none goes for nothing
    for using, done in begun:
        done.set()
        await using


async def test_models_that_are_loading_count_together(bench: Bench, machine: Machine):
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


async def test_a_model_that_never_fits_beside_the_default_one_is_refused_for_good(bench: Bench, machine: Machine):
    await bench.used("default")
    bench.loader.bytes["a"] = 21
    with pytest.raises(WrongState) as caught:
        await bench.used("a")
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_TOO_LARGE", False)
    assert bench.loader.loads == ["default"]


async def test_calls_load_only_models_that_they_may_and_use_what_an_admin_loaded(bench: Bench):
    bench.pool._options = PoolOptions("default", max_memory_bytes=100, loadable=frozenset({"a"}))
    await bench.used("default")
    await bench.used("a")
    with pytest.raises(NotFound) as caught:
        await bench.used("b")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert (bench.pool.may_load("a"), bench.pool.may_load("b")) == (True, False)
    await bench.pool.load("b")
    await bench.used("b")
