"""Who is decoded when: the only way to the model.

Calls hand in windows; worker loops take batches of them (`lanes.py` says which) to the model, in threads. What waits is
shared out among the workers that are free. A batch does not wait for company unless more work is known to be on its
way, and then a few milliseconds at most. Work whose caller has gone leaves the line at once; CTranslate2 cannot stop a
batch that runs, so the rest of it is told at its next step.

A batch that runs cannot make way. So while there is live speech, batches of what is less urgent are small, and the last
free worker is kept from what can wait.

How long new work would wait is estimated from what stands before it and from the measured pace: seconds taken for each
second of expected cost. Work that cannot be done by its caller's deadline is refused at once, and interims are dropped
before finals wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.lanes import Lanes, Waiting
from typeless_grpc.engine.shares import may_hold, share_is_used_up
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded, TypelessError

log = logging.getLogger(__name__)

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

# Weight of the newest batch in the measured pace: the last dozen or so decide.
PACE_WEIGHT = 0.15

# Live speech is taken to go on for so long after its last window: longer than pauses between utterances.
LIVE_LASTS_S = 10.0
LIVE = (Lane.LIVE_FINAL, Lane.LIVE_INTERIM)


@dataclass(frozen=True)
class SchedulerOptions:
    """How the engine is shared.

    max_batch: windows decoded together, 1 to 64; more is faster for many callers and slower for the first of them.
    max_batch_cost_s: expected of a batch, in seconds of an idle engine: it bounds the memory of long windows together.
    live_batch_cost_s: the same while there is live speech, which may have to wait for the batch to end.
    gather_ms: how long a batch waits for work that is on its way. n_workers: batches at the same time, each with its
    own threads of the model. max_waiting: windows in line that are as urgent or more; more are refused, so that patient
    work never keeps out what is more urgent. starve_after_s: a lane that waited so long has a turn.
    interim_max_wait_s: interims that waited longer are dropped, 0.1 to 10.
    """

    max_batch: int = 8
    max_batch_cost_s: float = 3.5
    live_batch_cost_s: float = 1.0
    gather_ms: float = 4.0
    n_workers: int = 1
    max_waiting: int = 1024
    starve_after_s: float = 5.0
    interim_max_wait_s: float = 1.0


@dataclass(frozen=True)
class Turn:
    """When a window was handed in, and when its batch ran; seconds of the clock."""

    submitted_s: float
    started_s: float
    ended_s: float


@dataclass(frozen=True)
class Done(Generic[ResultT]):
    """What became of a window."""

    result: ResultT
    turn: Turn


@dataclass(eq=False)
class Task(Generic[WorkT, ResultT]):
    """A window in line, and who waits for it."""

    work: WorkT
    done: asyncio.Future[Done[ResultT]]
    deadline_s: float | None

    def is_wanted(self) -> bool:
        """Whether somebody still waits; safe to ask from any thread."""
        return not self.done.done()


# Decodes a batch, in a thread: a result or an exception for each; None for one that is no longer wanted.
Run = Callable[[Sequence[Task[WorkT, ResultT]]], Sequence[ResultT | Exception | None]]


class Scheduler(Generic[WorkT, ResultT]):
    """Takes windows, gives results. Belongs to the event loop that starts it."""

    def __init__(self, run: Run[WorkT, ResultT], options: SchedulerOptions, clock: Clock, executor: Executor) -> None:
        """executor: threads for `run`; at least options.n_workers of them."""
        self._run = run
        self._options = options
        self._clock = clock
        self._executor = executor
        self._lanes: Lanes[Task[WorkT, ResultT]] = Lanes(starve_after_s=options.starve_after_s)
        self._arrived = asyncio.Event()
        self._n_coming = 0
        self._running: dict[int, tuple[float, float]] = {}
        self._live_s = float("-inf")
        self._moved_s = clock.now_s()  # when a batch ended last, or work came to an idle engine
        self._pace: float | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._is_stopped = False

    async def start(self) -> None:
        """Begin to serve."""
        self._workers = [asyncio.create_task(self._serve(index)) for index in range(self._options.n_workers)]

    async def stop(self) -> None:
        """Stop serving; whoever still waits, in line or for a running batch, is told that the server goes away."""
        self._is_stopped = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for lane in Lane:
            for entry in self._lanes.older_than(lane, float("inf")):
                self._refuse(entry, _going_away())

    async def submit(
        self, work: WorkT, *, key: Hashable, cost_s: float, ticket: Ticket, is_begun: bool = False
    ) -> Done[ResultT]:
        """Wait for a window's turn and its result; cancelling takes it out of the line.

        key: only windows with equal keys share a batch. cost_s: what the window takes, in seconds of an idle engine.
        is_begun: of a call that had windows done: a line that filled up since does not refuse it.
        Raises Overloaded (the line is full, or an interim is not worth its time), RateLimited (the caller has its share
        of the line), DeadlineExceeded, or what `run` gave: EngineFailed where it gave what nobody foresaw.
        """
        self.check(cost_s, ticket, is_begun=is_begun)
        now_s = self._clock.now_s()
        task: Task[WorkT, ResultT] = Task(work, asyncio.get_running_loop().create_future(), ticket.deadline_s)
        entry = Waiting(task, key, cost_s, ticket.lane, ticket.caller, now_s)
        if ticket.lane in LIVE:
            self._live_s = now_s
        if not self._has_work:
            self._moved_s = now_s
        self._lanes.push(entry)
        self._arrived.set()
        try:
            return await task.done
        finally:
            self._lanes.remove(entry)

    def check(self, cost_s: float, ticket: Ticket, *, is_begun: bool = False) -> None:
        """Refuse work that cannot be taken, or not in time. Raises Overloaded, RateLimited or DeadlineExceeded."""
        if self._is_stopped:
            raise _going_away()
        wait_s = self.backlog_s(ticket.lane, ticket.caller)
        n_before = sum(self._lanes.n_waiting(lane) for lane in Lane if lane <= ticket.lane)
        if n_before >= self._options.max_waiting and not is_begun:
            raise Overloaded("The line before the engine is full.", retry_after_s=max(0.1, wait_s))
        # Live speech has a bound of its own, on streams, and cannot come again.
        if ticket.caller and ticket.lane not in LIVE and not is_begun:
            n_own = self._lanes.n_waiting_of(ticket.caller, ticket.lane)
            if not may_hold(n_own, 1, self._options.max_waiting - n_before):
                raise share_is_used_up(ticket.caller, "places in line for the engine", max(0.1, wait_s))
        if ticket.lane is Lane.LIVE_INTERIM and wait_s > self._options.interim_max_wait_s:
            raise Overloaded("No time for interim results now.", reason="INTERIM_DROPPED", retry_after_s=wait_s)
        if ticket.deadline_s is None:
            return
        left_s = ticket.deadline_s - self._clock.now_s()
        needed_s = wait_s + cost_s * (self._pace or 0.0)
        if needed_s > left_s or left_s <= 0:
            raise DeadlineExceeded(
                f"This needs about {needed_s:.1f} s, waiting included, and the deadline is in {max(0.0, left_s):.1f} s."
            )

    def backlog_s(self, lane: Lane, caller: str | None = None) -> float:
        """How long new work would wait, by the measured pace; 0 before anything was measured.

        caller: whose; None where it would be the last of its lane.
        """
        now_s = self._clock.now_s()
        running_s = [max(0.0, ends_s - now_s) for _, ends_s in self._running.values()]
        if len(running_s) < self._options.n_workers and not self._lanes.n_waiting():
            return 0.0
        pace = self._pace or 0.0
        return (self._lanes.cost_s(lane, caller) * pace + sum(running_s)) / self._options.n_workers

    @property
    def stalled_s(self) -> float:
        """Seconds since a batch ended, while work waits or runs; 0 where none does, infinite where a worker died."""
        if not self._is_stopped and any(worker.done() for worker in self._workers):
            return float("inf")
        return self._clock.now_s() - self._moved_s if self._has_work else 0.0

    @property
    def _has_work(self) -> bool:
        return bool(self._running or self._lanes.n_waiting())

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Work is on its way while this is open: a batch that is not full may wait a moment for it.

        The end of it wakes nobody, because the work is handed in just after: a batch that waits would go without it.
        """
        self._n_coming += 1
        try:
            yield
        finally:
            self._n_coming -= 1

    async def _serve(self, index: int) -> None:
        while True:
            self._drop_stale_interims()
            if not self._lanes.has_next(self._clock.now_s(), is_yielding=self._is_yielding()):
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._gather()
            batch = self._lanes.pop(
                self._clock.now_s(),
                max_batch=self._options.max_batch,
                max_cost_s=self._options.live_batch_cost_s if self._is_live() else self._options.max_batch_cost_s,
                n_takers=self._n_free,
                is_yielding=self._is_yielding(),
            )
            if batch := [entry for entry in batch if self._in_time(entry)]:
                await self._decode(index, batch)
                self._arrived.set()  # what yielded to the others may go now that this one is free

    async def _gather(self) -> None:
        """Wait for company, where it is on its way, until the batch is full or the time is over."""
        ends_s = self._clock.now_s() + self._options.gather_ms / 1000
        while self._n_coming and self._n_alike() < self._options.max_batch:
            left_s = ends_s - self._clock.now_s()
            if left_s <= 0:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left_s)

    @property
    def _n_free(self) -> int:
        return self._options.n_workers - len(self._running)

    def _n_alike(self) -> int:
        return self._lanes.n_alike(self._clock.now_s(), is_yielding=self._is_yielding())

    def _is_live(self) -> bool:
        return self._clock.now_s() - self._live_s < LIVE_LASTS_S

    def _is_yielding(self) -> bool:
        """Whether a worker that is free now is the last of several, and live speech may come."""
        return self._is_live() and self._n_free == 1 < self._options.n_workers

    async def _decode(self, index: int, batch: list[Waiting[Task[WorkT, ResultT]]]) -> None:
        expected_s = sum(entry.cost_s for entry in batch)
        started_s = self._clock.now_s()
        self._running[index] = (started_s, started_s + expected_s * (self._pace or 0.0))
        try:
            results = await self._results([entry.work for entry in batch])
        except asyncio.CancelledError:
            for entry in batch:
                self._refuse(entry, _going_away())
            raise
        finally:
            del self._running[index]
            self._moved_s = self._clock.now_s()
        ended_s = self._clock.now_s()
        if all(result is not None and not isinstance(result, Exception) for result in results):
            self._measure((ended_s - started_s) / max(expected_s, 1e-6))
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self._refuse(entry, result if isinstance(result, TypelessError) else _failed(result))
            elif result is not None and entry.work.is_wanted():
                entry.work.done.set_result(Done(result, Turn(entry.since_s, started_s, ended_s)))

    async def _results(self, tasks: list[Task[WorkT, ResultT]]) -> Sequence[ResultT | Exception | None]:
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, tasks)
            assert len(results) == len(tasks)
            return results
        except Exception as error:
            if len(tasks) == 1:
                return [error]
        # One of them made the batch fail; alone, the others do not pay for it.
        return [(await self._results([task]))[0] if task.is_wanted() else None for task in tasks]

    def _measure(self, pace: float) -> None:
        self._pace = pace if self._pace is None else self._pace + PACE_WEIGHT * (pace - self._pace)

    def _in_time(self, entry: Waiting[Task[WorkT, ResultT]]) -> bool:
        if entry.work.deadline_s is not None and self._clock.now_s() >= entry.work.deadline_s:
            self._refuse(entry, DeadlineExceeded("The deadline passed while this waited for the engine."))
        return entry.work.is_wanted()

    def _drop_stale_interims(self) -> None:
        before_s = self._clock.now_s() - self._options.interim_max_wait_s
        for entry in self._lanes.older_than(Lane.LIVE_INTERIM, before_s):
            self._lanes.remove(entry)
            self._refuse(entry, Overloaded("No time for interim results now.", reason="INTERIM_DROPPED"))

    def _refuse(self, entry: Waiting[Task[WorkT, ResultT]], error: Exception) -> None:
        if entry.work.is_wanted():
            entry.work.done.set_exception(error)


def _failed(error: Exception) -> EngineFailed:
    log.error("the engine failed", exc_info=error)
    failed = EngineFailed("The model failed on this audio.")
    failed.__cause__ = error
    return failed


def _going_away() -> Overloaded:
    return Overloaded("This server is going away.", reason="DRAINING")
