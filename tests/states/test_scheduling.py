"""The inference queue under seeded schedules: lanes, callers, deadlines and cancellations, beside a list of windows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.states.machines import factor
from tests.states.seeded import DELAYS_S, explore, schedule
from typeless_grpc.engine import scheduler as scheduling
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.lanes import Entry, LaneQueue
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions, WorkItem
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded, RateLimited

N_SCHEDULES = 40
MAX_QUEUED, STARVE_AFTER_S, FLOOD_S = 40, 1.0, 15.0
CALLERS = ("a", "b", "greedy")
BATCH_S = 2 * max(DELAYS_S)  # at most: its start and its answer are delayed
# A lane that waits gets a batch once it starves, after those of the other lanes that starve.
LANE_WAITS_S = STARVE_AFTER_S + (len(Lane) + 1) * BATCH_S


@dataclass(eq=False)
class Window:
    """The reference: what happened to one window.

    n_own_before: how many others of its caller waited. started_s: when its batches ran while it was wanted. pushed,
    popped: the numbers of these events among those of all windows.
    """

    name: str
    lane: Lane
    caller: str
    deadline_s: float | None
    submitted_s: float
    n_own_before: int
    pushed: int = 0
    popped: int | None = None
    started_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    outcome: Any = None
    is_cancelled: bool = False


WATCHING: ContextVar[Callers] = ContextVar("callers")


class Callers:
    """All windows of all callers, and the model that decodes them."""

    def __init__(self) -> None:
        self.loop, self.random = schedule(), schedule().random
        self.windows: dict[str, Window] = {}
        self.count = itertools.count(1)
        self.options = SchedulerOptions(
            max_batch=self.random.randrange(1, 5),
            n_workers=self.random.randrange(1, 4),
            max_queued=MAX_QUEUED,
            starve_after_s=STARVE_AFTER_S,
            max_batch_cost_s=100.0,
        )
        threads: Any = None  # work of threads runs in the loop
        self.scheduler: Scheduler[str, str] = Scheduler(self.decode, self.options, self.loop, threads)

    def decode(self, items: Sequence[WorkItem[str, str]]) -> list[str | Exception | None]:
        assert 0 < len(items) <= self.options.max_batch
        answers: list[str | Exception | None] = []
        for item in items:
            if item.is_wanted():
                self.windows[item.work].started_s.append(self.loop.time())
            is_bad = item.work.endswith("0")
            answers.append(
                None if not item.is_wanted() else EngineFailed("It is bad.") if is_bad else item.work.upper()
            )
        return answers

    def waiting(self, lane: Lane) -> list[Window]:
        """The windows up to this lane that have not begun; the queue has some of them."""
        return [one for one in self.windows.values() if one.lane <= lane and not one.started_s and one.ended_s is None]

    async def submit(self, caller: str, lane: Lane) -> None:
        now_s, name = self.loop.time(), f"{caller}-{len(self.windows)}"
        deadline_s = now_s + self.random.uniform(0.1, 20.0) if self.random.random() < 0.2 else None
        waiting = self.waiting(lane)
        n_own = sum(one.caller == caller for one in waiting)
        window = Window(name, lane, caller, deadline_s, now_s, n_own)
        self.windows[name] = window
        cost_s = self.random.uniform(0.1, 1.0)
        work = asyncio.ensure_future(
            self.scheduler.submit(
                name, key=self.random.choice("kkl"), cost_s=cost_s, ticket=Ticket(lane, caller, deadline_s)
            )
        )
        if self.random.random() < 0.15:
            self.loop.call_later(self.random.uniform(0.0, 2.0), self.cancel, window, work)
        try:
            window.outcome = (await work).result
        except asyncio.CancelledError:
            window.outcome = "cancelled"
        except Exception as error:
            window.outcome = error
            if isinstance(error, Overloaded) and error.reason == "OVERLOADED":
                assert len(waiting) >= MAX_QUEUED
            if isinstance(error, RateLimited):
                assert window.n_own_before, "a caller that holds nothing is let in"
        window.ended_s = self.loop.time()

    def cancel(self, window: Window, work: asyncio.Future[Any]) -> None:
        window.is_cancelled |= work.cancel()

    async def flood(self) -> None:
        """Keep many windows of one caller in the queue."""
        running: set[asyncio.Task[None]] = set()
        ends_s = self.loop.time() + FLOOD_S
        while self.loop.time() < ends_s:
            running |= {asyncio.create_task(self.submit("greedy", Lane.UNARY)) for _ in range(20 - len(running))}
            await asyncio.sleep(0.1)
            running = {one for one in running if not one.done()}
        await asyncio.gather(*running)

    async def come_at_times(self, caller: str) -> None:
        running = []
        for _ in range(self.random.randrange(3, 15)):
            running.append(asyncio.create_task(self.submit(caller, self.random.choice(list(Lane)))))
            await asyncio.sleep(self.random.choice((0.0, 0.01, 0.5, 2.0)))
        await asyncio.gather(*running)


async def windows_are_shared_out() -> None:
    callers = Callers()
    WATCHING.set(callers)
    await callers.scheduler.start()
    async with asyncio.timeout(1000):
        await asyncio.gather(callers.flood(), *(callers.come_at_times(caller) for caller in "ab"))
    await callers.scheduler.stop()
    for window in callers.windows.values():
        check_outcome(window)
        check_turn(window, callers)


def check_outcome(window: Window) -> None:
    """Each window has one result, or a reason."""
    match window.outcome:
        case str() if window.outcome == "cancelled":
            assert window.is_cancelled
        case str():
            assert window.outcome == window.name.upper()
            assert len(window.started_s) == 1
        case EngineFailed():
            assert window.name.endswith("0")
            assert len(window.started_s) == 1
        case DeadlineExceeded():
            assert window.deadline_s is not None
            assert not window.started_s
        case Overloaded(reason="INTERIM_DROPPED"):
            assert window.lane is Lane.LIVE_INTERIM
            assert not window.started_s
        case Overloaded(reason="OVERLOADED") | RateLimited(reason="SHARE_USED_UP"):
            assert window.lane is not Lane.LIVE_FINAL or isinstance(window.outcome, Overloaded)
            assert not window.started_s
        case _:
            raise AssertionError(f"{window} has no outcome")
    if window.started_s and window.deadline_s is not None:
        assert window.started_s[0] < window.deadline_s + BATCH_S / 2


def check_turn(window: Window, callers: Callers) -> None:
    """No lane starves, and no caller waits behind all the work of another."""
    ended_s = window.started_s[0] if window.started_s else window.ended_s
    assert ended_s is not None
    between = [
        other
        for other in callers.windows.values()
        if other.lane is window.lane and other.started_s and window.submitted_s <= other.started_s[0] <= ended_s
    ]
    moments_s = [window.submitted_s, *sorted(other.started_s[0] for other in between), ended_s]
    assert max(b - a for a, b in itertools.pairwise(moments_s)) <= LANE_WAITS_S
    own = [one for one in callers.windows.values() if (one.caller, one.lane) == (window.caller, window.lane)]
    if window.popped is not None and [one for one in own if one.submitted_s <= ended_s] == [window]:
        # At most a batch of each other caller, and those of lanes that starve, which others may join.
        n_batches = len(CALLERS) + len(Lane)
        before = [
            other
            for other in callers.windows.values()
            if other.lane is window.lane and other.popped is not None and window.pushed < other.popped < window.popped
        ]
        assert len(before) <= n_batches * callers.options.max_batch


class WatchedQueue(LaneQueue[Any]):
    """Notes the order in which windows come and go."""

    def push(self, entry: Entry[Any]) -> None:
        callers = WATCHING.get()
        callers.windows[entry.work.work].pushed = next(callers.count)
        super().push(entry)

    def pop(self, now_s: float, **given: Any) -> list[Entry[Any]]:
        batch, callers = super().pop(now_s, **given), WATCHING.get()
        for entry in batch:
            callers.windows[entry.work.work].popped = next(callers.count)
        return batch


class LosesOne(WatchedQueue):
    def push(self, entry: Entry[Any]) -> None:
        if schedule().random.random() > 0.02:
            super().push(entry)


class ServesTwice(WatchedQueue):
    def pop(self, now_s: float, **given: Any) -> list[Entry[Any]]:
        batch = super().pop(now_s, **given)
        if schedule().random.random() < 0.1:
            for entry in batch:
                self.push(entry)
        return batch


class NeverStarves(WatchedQueue):
    def __init__(self, *, starve_after_s: float) -> None:
        super().__init__(starve_after_s=float("inf"))


class ForgetsCallers(WatchedQueue):
    """First come, first served."""

    def push(self, entry: Entry[Any]) -> None:
        entry.caller = ""
        super().push(entry)


def test_each_window_is_decoded_once_or_refused_and_none_starves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduling, "LaneQueue", WatchedQueue)
    explore(windows_are_shared_out, N_SCHEDULES * factor())


@pytest.mark.parametrize("fault", [LosesOne, ServesTwice, NeverStarves, ForgetsCallers])
def test_a_planted_fault_of_the_queue_is_found(fault: type[LaneQueue[Any]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduling, "LaneQueue", fault)
    with pytest.raises((AssertionError, TimeoutError)):
        explore(windows_are_shared_out, range(N_SCHEDULES))
