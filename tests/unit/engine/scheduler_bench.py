"""A scheduler with a fake clock, manual threads and a model that the test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.unit.engine.harness import ManualExecutor
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.observer import EngineObserver, NoObserver, Stage
from typeless_grpc.engine.scheduler import Completed, Scheduler, SchedulerOptions, WorkItem

Answer = str | Exception | None

# Batches are bounded by their size unless a test says otherwise.
DEFAULTS: dict[str, object] = {"gather_ms": 0.0, "max_batch": 4, "max_batch_cost_s": 100.0, "live_batch_cost_s": 1.0}


class WorkerCrash(BaseException):
    """An error that no worker survives."""


@dataclass
class SchedulerBench:
    """A scheduler with a fake clock and manual threads.

    takes_s: for each item. answer: the result of an item. breaks: whether a batch fails as a whole. crashes: whether
    running a batch ends its worker. n_extra: results beyond those of the items. unwanted: items that were not wanted
    any more when their batch ran. observer: of the scheduler. stages: of each batch.
    """

    options: SchedulerOptions
    clock: FakeClock = field(default_factory=FakeClock)
    takes_s: float = 0.0
    answer: Callable[[str], Answer] = str.upper
    breaks: Callable[[list[str]], bool] = lambda batch: False
    crashes: bool = False
    n_extra: int = 0
    batches: list[list[str]] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)

    observer: EngineObserver = field(default_factory=NoObserver)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        self.threads = ManualExecutor()
        self.scheduler: Scheduler[str, str] = Scheduler(self.run, self.options, self.clock, self.threads, self.observer)

    def run(self, items: Sequence[WorkItem[str, str]]) -> Sequence[Answer]:
        self.batches.append([item.work for item in items])
        stages = tuple(self.stages)
        for item in items:
            item.stages = stages
        self.clock.advance(self.takes_s * len(items))
        self.unwanted += [item.work for item in items if not item.is_wanted()]
        if self.crashes:
            raise WorkerCrash
        if self.breaks(self.batches[-1]):
            raise RuntimeError("broken")
        return ["extra"] * self.n_extra + [self.answer(item.work) if item.is_wanted() else None for item in items]

    def submit(
        self,
        work: str,
        lane: Lane = Lane.UNARY,
        *,
        caller: str = "",
        key: str = "k",
        cost_s: float = 1.0,
        deadline_s: float | None = None,
    ) -> asyncio.Task[Completed[str]]:
        ticket = Ticket(lane, caller, deadline_s)
        return asyncio.create_task(self.scheduler.submit(work, key=key, cost_s=cost_s, ticket=ticket))

    async def busy(self) -> asyncio.Task[Completed[str]]:
        """Submit one item that runs, so that all later ones wait."""
        running = self.submit("running", key="running")
        await self.threads.until(n_waiting=1)
        return running

    async def measured(self, pace: float) -> None:
        """Let the scheduler measure its pace: seconds for each second of expected cost."""
        self.takes_s = pace
        first = self.submit("measured")
        await self.threads.run_all()
        await first
        self.batches.clear()


@asynccontextmanager
async def serving(observer: EngineObserver | None = None, **options: object) -> AsyncIterator[SchedulerBench]:
    bench = SchedulerBench(SchedulerOptions(**DEFAULTS | options), observer=observer or NoObserver())  # type: ignore[arg-type]
    await bench.scheduler.start()
    try:
        yield bench
    finally:
        await bench.scheduler.stop()
