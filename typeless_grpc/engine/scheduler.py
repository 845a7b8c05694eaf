"""Decides when each window is decoded. All windows reach the model through it.

Calls submit windows. Workers take batches of them from the queue (`lanes.py` decides which) and run them on the model,
in threads. Queued work is shared out among the free workers. A batch waits for more work only if some is known to
follow, for a few milliseconds at most. Work whose caller has left leaves the queue at once; CTranslate2 cannot stop a
batch that runs, but checks at each step whether its result is still wanted.

A running batch cannot be preempted. So while there is live speech, less urgent batches are small, and the last free
worker takes nothing that can wait.

The wait of new work is estimated from the cost of the work ahead of it and from the measured pace: seconds for each
second of expected cost. Work that cannot be done by its deadline is refused at once, and interims are dropped before
finals wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.engine.costs import MAX_BATCH_COST, MAX_LIVE_BATCH_COST
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.lanes import Entry, LaneQueue
from typeless_grpc.engine.observer import BatchReport, EngineObserver, NoObserver, Stage, WindowReport
from typeless_grpc.engine.shares import may_hold, share_is_used_up
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded, TypelessError

log = logging.getLogger(__name__)

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

# Weight of the newest batch in the measured pace: the last dozen or so decide.
PACE_WEIGHT = 0.15

# How long live speech is assumed to continue after its last window: longer than pauses between utterances.
LIVE_LASTS_S = 10.0
# On a wait by the pace at which a lane was served: two standard deviations of a mean over N_MEASURED waits.
MEASURED_MARGIN = 1.35
PROMOTE_PART = 0.8  # of the time until the deadline, after which work that still waits is promoted
LIVE = (Lane.LIVE_FINAL, Lane.LIVE_INTERIM)


@dataclass(frozen=True)
class SchedulerOptions:
    """How the engine is shared.

    max_batch: windows decoded together, 1 to 64; more is faster for many callers and slower for the first of them.
    max_batch_cost_s: expected cost of a batch, in seconds of an idle engine; it bounds the memory of long windows.
    live_batch_cost_s: the same while there is live speech. gather_ms: how long a batch waits for work that is known to
    follow. n_workers: batches that run in parallel, each with its own threads of the model. max_queued: windows of the
    same or a more urgent lane in the queue; more are refused, so that work that can wait never blocks urgent work.
    starve_after_s: a lane that was not served for this long is served next. interim_max_wait_s: interims that waited
    longer are dropped, 0.1 to 10.
    """

    max_batch: int
    max_batch_cost_s: float = MAX_BATCH_COST
    live_batch_cost_s: float = MAX_LIVE_BATCH_COST
    gather_ms: float = 4.0
    n_workers: int = 1
    max_queued: int = 1024
    starve_after_s: float = 5.0
    interim_max_wait_s: float = 1.0


@dataclass(frozen=True)
class Timing:
    """When a window was submitted, and when its batch ran; seconds of the clock.

    model_s: its share of the time that the model took for the batch.
    """

    submitted_s: float
    started_s: float
    ended_s: float
    model_s: float = 0.0


@dataclass(frozen=True)
class Completed(Generic[ResultT]):
    """A result, and the time of its batch."""

    result: ResultT
    timing: Timing


@dataclass(eq=False)
class WorkItem(Generic[WorkT, ResultT]):
    """Submitted work, and the future that its caller waits for.

    context: of the caller. stages: of the batch that ran it; set by `run_batch`.
    """

    work: WorkT
    future: asyncio.Future[Completed[ResultT]]
    deadline_s: float | None
    context: Context = field(default_factory=copy_context)
    stages: tuple[Stage, ...] = ()

    def is_wanted(self) -> bool:
        """Whether the caller still waits; may be called from any thread."""
        return not self.future.done()


# Runs a batch, in a thread. Returns a result or an exception for each item; None for one that is not wanted any more.
RunBatch = Callable[[Sequence[WorkItem[WorkT, ResultT]]], Sequence[ResultT | Exception | None]]


class Scheduler(Generic[WorkT, ResultT]):
    """Takes windows and returns their results. Belongs to the event loop that starts it."""

    def __init__(
        self,
        run_batch: RunBatch[WorkT, ResultT],
        options: SchedulerOptions,
        clock: Clock,
        executor: Executor,
        observer: EngineObserver | None = None,
    ) -> None:
        """executor: threads for `run_batch`; at least options.n_workers of them."""
        self._run_batch = run_batch
        self._options = options
        self._clock = clock
        self._executor = executor
        self._observer = observer or NoObserver()
        self._queue: LaneQueue[WorkItem[WorkT, ResultT]] = LaneQueue(starve_after_s=options.starve_after_s)
        self._changed = asyncio.Event()  # work was queued, or a worker is free
        self._n_expected = 0
        self._expected_ends_s: dict[int, float] = {}  # of the running batches, by worker
        self._last_live_s = float("-inf")
        self._progress_s = clock.now_s()  # when a batch last ended, or work arrived at an idle engine
        self._pace: float | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._is_stopped = False

    async def start(self) -> None:
        """Start the workers."""
        self._workers = [asyncio.create_task(self._work(index)) for index in range(self._options.n_workers)]

    async def stop(self) -> None:
        """Stop the workers. All waiting callers get Overloaded with the reason DRAINING."""
        self._is_stopped = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for lane in Lane:
            for entry in self._queue.queued_before(lane, float("inf")):
                self._refuse(entry, _shutting_down())

    async def submit(
        self, work: WorkT, *, key: Hashable, cost_s: float, ticket: Ticket, is_continuation: bool = False
    ) -> Completed[ResultT]:
        """Queue a window and wait for its result; cancelling removes it from the queue.

        key: only windows with equal keys share a batch. cost_s: what the window takes, in seconds of an idle engine.
        is_continuation: other windows of the call have run, so it is not refused because the queue has filled since.
        Raises Overloaded (the queue is full, or there is no time for an interim), RateLimited (the caller has used its
        share of the queue), DeadlineExceeded, or the exception that `run_batch` returned; EngineFailed for an
        unforeseen one.
        """
        try:
            self.check(cost_s, ticket, is_continuation=is_continuation)
        except TypelessError as error:
            self._observer.refused(ticket.lane, error.reason)
            raise
        now_s = self._clock.now_s()
        item: WorkItem[WorkT, ResultT] = WorkItem(work, asyncio.get_running_loop().create_future(), ticket.deadline_s)
        entry = Entry(item, key, cost_s, ticket.lane, ticket.caller, now_s, _promote_s(now_s, ticket.deadline_s))
        if ticket.lane in LIVE:
            self._last_live_s = now_s
        if not self.has_work:
            self._progress_s = now_s
        self._queue.push(entry)
        self._changed.set()
        try:
            return await item.future
        finally:
            self._queue.remove(entry)

    def check(self, cost_s: float, ticket: Ticket, *, is_continuation: bool = False) -> None:
        """Refuse work that `submit` would refuse now. Raises Overloaded, RateLimited or DeadlineExceeded."""
        if self._is_stopped:
            raise _shutting_down()
        wait_s = self.backlog_s(ticket.lane, ticket.caller)
        n_ahead = sum(self._queue.n_queued(lane) for lane in Lane if lane <= ticket.lane)
        if n_ahead >= self._options.max_queued and not is_continuation:
            raise Overloaded("The inference queue is full.", retry_after_s=max(0.1, wait_s))
        # Live speech is bounded by the number of streams, and cannot be sent again.
        if ticket.caller and ticket.lane not in LIVE and not is_continuation:
            n_own = self._queue.n_queued_of(ticket.caller, ticket.lane)
            if not may_hold(n_own, 1, self._options.max_queued - n_ahead):
                raise share_is_used_up(ticket.caller, "slots in the inference queue", max(0.1, wait_s))
        if ticket.lane is Lane.LIVE_INTERIM and wait_s > self._options.interim_max_wait_s:
            raise _interim_dropped(wait_s)
        if ticket.deadline_s is None:
            return
        left_s = ticket.deadline_s - self._clock.now_s()
        measured_s = MEASURED_MARGIN * self._queue.measured_wait_s(ticket.lane, ticket.caller, self._clock.now_s())
        needed_s = max(wait_s, measured_s) + cost_s * (self._pace or 0.0)
        if needed_s > left_s or left_s <= 0:
            raise DeadlineExceeded(
                f"This needs about {needed_s:.1f} s with the wait, and the deadline is in {max(0.0, left_s):.1f} s."
            )

    def backlog_s(self, lane: Lane, caller: str | None = None) -> float:
        """Return how long new work would wait, by the measured pace; 0 before anything was measured.

        caller: of the work; None for the end of the lane.
        """
        now_s = self._clock.now_s()
        running_s = [max(0.0, ends_s - now_s) for ends_s in self._expected_ends_s.values()]
        if len(running_s) < self._options.n_workers and not self._queue.n_queued():
            return 0.0
        pace = self._pace or 0.0
        return (self._queue.cost_ahead_s(lane, caller) * pace + sum(running_s)) / self._options.n_workers

    @property
    def stalled_s(self) -> float:
        """Seconds since a batch ended, while work is queued or runs; 0 for none, infinite if a worker died."""
        if not self._is_stopped and any(worker.done() for worker in self._workers):
            return float("inf")
        return self._clock.now_s() - self._progress_s if self.has_work else 0.0

    def n_queued(self, lane: Lane) -> int:
        """Return how many windows of a lane are in the queue."""
        return self._queue.n_queued(lane)

    @property
    def has_work(self) -> bool:
        """Whether windows are queued or run."""
        return bool(self._expected_ends_s or self._queue.n_queued())

    @contextlib.contextmanager
    def expecting_work(self) -> Iterator[None]:
        """While this is open, a batch that is not full may wait a moment for the work that will be submitted.

        The end of this context wakes no worker: the work follows at once, and a waiting batch would start without it.
        """
        self._n_expected += 1
        try:
            yield
        finally:
            self._n_expected -= 1

    async def _work(self, index: int) -> None:
        """Run one worker: take batches from the queue and decode them, until cancelled."""
        while True:
            self._drop_stale_interims()
            if not self._queue.has_next(self._clock.now_s(), is_yielding=self._is_yielding()):
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._gather()
            batch = self._queue.pop(
                self._clock.now_s(),
                max_batch=self._options.max_batch,
                max_cost_s=self._options.live_batch_cost_s if self._is_live() else self._options.max_batch_cost_s,
                n_free_workers=self._n_free,
                is_yielding=self._is_yielding(),
            )
            if batch := [entry for entry in batch if self._is_in_time(entry)]:
                await self._decode(index, batch)
                self._changed.set()  # lanes that yielded may be served now, because this worker is free

    async def _gather(self) -> None:
        """Wait for expected work until the batch is full or the time is over."""
        ends_s = self._clock.now_s() + self._options.gather_ms / 1000
        while self._n_expected and self._next_batch_size() < self._options.max_batch:
            left_s = ends_s - self._clock.now_s()
            if left_s <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    @property
    def _n_free(self) -> int:
        return self._options.n_workers - len(self._expected_ends_s)

    def _next_batch_size(self) -> int:
        return self._queue.next_batch_size(self._clock.now_s(), is_yielding=self._is_yielding())

    def _is_live(self) -> bool:
        return self._clock.now_s() - self._last_live_s < LIVE_LASTS_S

    def _is_yielding(self) -> bool:
        """Whether a worker that is free now is the last of several, and live speech may arrive."""
        return self._is_live() and self._n_free == 1 < self._options.n_workers

    async def _decode(self, index: int, batch: list[Entry[WorkItem[WorkT, ResultT]]]) -> None:
        """Run a batch, report it, and give each caller its result or error. index: of the worker."""
        cost_s = sum(entry.cost_s for entry in batch)
        started_s = self._clock.now_s()
        self._expected_ends_s[index] = started_s + cost_s * (self._pace or 0.0)
        try:
            results = await self._results([entry.work for entry in batch])
        except asyncio.CancelledError:
            for entry in batch:
                self._refuse(entry, _shutting_down())
            raise
        finally:
            del self._expected_ends_s[index]
            self._progress_s = self._clock.now_s()
        ended_s = self._clock.now_s()
        if all(result is not None and not isinstance(result, Exception) for result in results):
            self._measure((ended_s - started_s) / max(cost_s, 1e-6))
        self._observer.batch_ended(_report(batch, results, started_s, ended_s))
        n_sharing = Counter(id(entry.work.stages) for entry in batch)
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self._refuse(entry, result if isinstance(result, TypelessError) else _failed(result))
            elif result is not None and entry.work.is_wanted():
                model_s = sum(stage.seconds for stage in entry.work.stages) / n_sharing[id(entry.work.stages)]
                timing = Timing(entry.queued_s, started_s, ended_s, model_s)
                entry.work.future.set_result(Completed(result, timing))

    async def _results(self, items: list[WorkItem[WorkT, ResultT]]) -> Sequence[ResultT | Exception | None]:
        """Run a batch in a thread. If it fails, run each item alone: only the item that made it fail should fail."""
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run_batch, items)
            assert len(results) == len(items)
            return results
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [(await self._results([item]))[0] if item.is_wanted() else None for item in items]

    def _measure(self, pace: float) -> None:
        """Take the pace of a batch into the measured one, a moving average."""
        self._pace = pace if self._pace is None else self._pace + PACE_WEIGHT * (pace - self._pace)

    def _is_in_time(self, entry: Entry[WorkItem[WorkT, ResultT]]) -> bool:
        """Whether an entry is still wanted. Refuses it first if its deadline has passed."""
        if entry.work.deadline_s is not None and self._clock.now_s() >= entry.work.deadline_s:
            self._refuse(entry, DeadlineExceeded("The deadline passed in the inference queue."))
        return entry.work.is_wanted()

    def _drop_stale_interims(self) -> None:
        before_s = self._clock.now_s() - self._options.interim_max_wait_s
        for entry in self._queue.queued_before(Lane.LIVE_INTERIM, before_s):
            self._queue.remove(entry)
            self._refuse(entry, _interim_dropped())

    def _refuse(self, entry: Entry[WorkItem[WorkT, ResultT]], error: Exception) -> None:
        """End the wait of an entry's caller with an error, and report it, if the caller still waits."""
        if entry.work.is_wanted():
            entry.work.future.set_exception(error)
            reason = error.reason if isinstance(error, TypelessError) else ""
            entry.work.context.run(self._observer.refused, entry.lane, reason)


def _report(
    batch: Sequence[Entry[WorkItem[WorkT, ResultT]]],
    results: Sequence[ResultT | Exception | None],
    started_s: float,
    ended_s: float,
) -> BatchReport:
    """Return what observers get to see of a batch that has ended."""
    windows = [
        WindowReport(
            lane=entry.lane,
            submitted_s=entry.queued_s,
            context=entry.work.context,
            is_done=result is not None and not isinstance(result, Exception) and entry.work.is_wanted(),
        )
        for entry, result in zip(batch, results, strict=True)
    ]
    # The windows that ran together have the same stages.
    stages = {id(entry.work.stages): entry.work.stages for entry in batch}
    return BatchReport(windows, started_s, ended_s, [stage for one in stages.values() for stage in one])


def _failed(error: Exception) -> EngineFailed:
    log.error("inference failed", exc_info=error)
    failed = EngineFailed("The model failed on this audio.")
    failed.__cause__ = error
    return failed


def _interim_dropped(retry_after_s: float = 1.0) -> Overloaded:
    return Overloaded("No time for interim results now.", reason="INTERIM_DROPPED", retry_after_s=retry_after_s)


def _promote_s(now_s: float, deadline_s: float | None) -> float:
    return math.inf if deadline_s is None else now_s + PROMOTE_PART * (deadline_s - now_s)


def _shutting_down() -> Overloaded:
    return Overloaded("This server is shutting down.", reason="DRAINING")
