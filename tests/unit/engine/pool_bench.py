"""A model pool with a fake source, loader and machine. The fixtures of its tests are in conftest.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.pool import Footprint, ModelPool, PoolOptions
from typeless_grpc.errors import EngineFailed, NotFound

HERE = Path("models")


@dataclass(eq=False)
class FakeModel:
    name: str
    memory_bytes: int = 10


@dataclass
class FakeSource:
    """Has the models in `here` without a network, and those in `far` after a download that waits for `gate`."""

    here: set[str] = field(default_factory=set)
    far: set[str] = field(default_factory=set)
    gets: list[str] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def find(self, name: str) -> Path | None:
        return HERE / name if name in self.here else None

    def get(self, name: str) -> Path:
        if name in self.here:
            return HERE / name
        if name not in self.far:
            raise NotFound("No such model.", reason="MODEL_NOT_FOUND")
        self.gets.append(name)
        self.began.set()
        assert self.gate.wait(10)
        self.here.add(name)
        return HERE / name


class Loader:
    """Loads fake models. began: set when a model's load begins. gates: a load waits for its gate.

    fails: how many loads of a model fail. bytes: the memory of a model, 10 unless set.
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
class Machine:
    """The memory of a machine, of which only the models of the pool take some."""

    total_bytes: int | None = None

    def free_bytes(self, pool: ModelPool[FakeModel]) -> int | None:
        if self.total_bytes is None:
            return None
        return self.total_bytes - sum(model.memory_bytes for model in pool.loaded().values())


class PoolBench:
    """A pool with a fake source and loader."""

    def __init__(self, threads: Executor, options: PoolOptions, *, has_footprints: bool = False) -> None:
        """has_footprints: files tell that a model takes 10 bytes, and 20 while it is loaded."""
        self.source, self.loader, self.clock = FakeSource({"default", "a", "b", "c"}), Loader(), FakeClock()
        self.machine = Machine()

        def footprint(directory: Path) -> Footprint:
            return Footprint(loaded=self.loader.bytes.get(directory.name, 10), loading=20)

        self.pool: ModelPool[FakeModel] = ModelPool(
            self.source,
            self.loader,
            threads,
            self.clock,
            options,
            footprint=footprint if has_footprints else lambda directory: Footprint(),
            free_bytes=lambda: self.machine.free_bytes(self.pool),
        )

    async def used(self, name: str) -> None:
        """Use a model for a moment, and let a second pass."""
        async with self.pool.use(name) as model:
            assert model.name == name
        self.clock.advance(1.0)


Users = Callable[[str], Awaitable[tuple[asyncio.Task[FakeModel], asyncio.Event]]]


@contextmanager
def opened(options: PoolOptions, *, has_footprints: bool = False) -> Iterator[PoolBench]:
    with ThreadPoolExecutor(3) as threads:
        bench = PoolBench(threads, options, has_footprints=has_footprints)
        yield bench
        for gate in [*bench.loader.gates.values(), bench.source.gate]:
            gate.set()


async def until(event: threading.Event) -> None:
    """Wait for an event of another thread."""
    assert await asyncio.to_thread(event.wait, 10)
