from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.harness import ManualExecutor
from tests.unit.idle import run_until_complete, until_idle
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.scheduler import LIVE_LASTS_S, Completed, Scheduler, SchedulerOptions, Timing, WorkItem
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded, RateLimited

Answer = str | Exception | None

# Batches are bounded by their size unless a test says otherwise.
DEFAULTS: dict[str, object] = {"gather_ms": 0.0, "max_batch": 4, "max_batch_cost_s": 100.0, "live_batch_cost_s": 1.0}


class WorkerCrash(BaseException):
    """An error that no worker survives."""


@dataclass
class Bench:
    """A scheduler with a fake clock and manual threads.

    takes_s: for each item. answer: the result of an item. breaks: whether a batch fails as a whole. crashes: whether
    running a batch ends its worker. n_extra: results beyond those of the items. unwanted: items that were not wanted
    any more when their batch ran.
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

    def __post_init__(self) -> None:
        self.threads = ManualExecutor()
        self.scheduler: Scheduler[str, str] = Scheduler(self.run, self.options, self.clock, self.threads)

    def run(self, items: Sequence[WorkItem[str, str]]) -> Sequence[Answer]:
        self.batches.append([item.work for item in items])
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
async def serving(**options: object) -> AsyncIterator[Bench]:
    bench = Bench(SchedulerOptions(**DEFAULTS | options))  # type: ignore[arg-type]
    await bench.scheduler.start()
    try:
        yield bench
    finally:
        await bench.scheduler.stop()


async def test_an_engine_that_has_work_and_ends_none_is_stalled():
    async with serving() as bench:
        bench.clock.advance(100.0)
        assert bench.scheduler.stalled_s == 0.0
        running = await bench.busy()
        bench.clock.advance(5.0)
        waiting = bench.submit("waiting")
        await until_idle()
        assert bench.scheduler.stalled_s == 5.0
        bench.threads.run()
        await running
        assert bench.scheduler.stalled_s == 0.0
        bench.clock.advance(3.0)
        assert bench.scheduler.stalled_s == 3.0
        await bench.threads.run_all()
        await waiting
        bench.clock.advance(100.0)
        assert bench.scheduler.stalled_s == 0.0


async def test_an_engine_whose_worker_died_cannot_work():
    async with serving() as bench:
        bench.crashes = True
        waiting = bench.submit("work")
        await bench.threads.run_all()
        assert bench.scheduler.stalled_s == float("inf")
        waiting.cancel()


# ---- what becomes of work ---------------------------------------------------------------------------------------


async def test_work_gets_its_result_and_tells_truly_how_long_it_waited():
    async with serving() as bench:
        bench.takes_s = 2.0
        running = await bench.busy()
        bench.clock.advance(1.0)
        waiting = bench.submit("hello")
        await until_idle()
        bench.clock.advance(4.0)
        await bench.threads.run_all()
        assert await running == Completed("RUNNING", Timing(submitted_s=0.0, started_s=0.0, ended_s=7.0))
        assert await waiting == Completed("HELLO", Timing(submitted_s=1.0, started_s=7.0, ended_s=9.0))


async def test_alike_work_of_several_callers_is_one_batch():
    async with serving() as bench:
        await bench.busy()
        calls = [bench.submit(str(number), caller=str(number)) for number in range(3)]
        other = bench.submit("other", key="other")
        await bench.threads.run_all()
        await asyncio.gather(*calls, other)
        assert bench.batches == [["running"], ["0", "1", "2"], ["other"]]


async def test_urgent_work_goes_first():
    async with serving(max_batch=1) as bench:
        await bench.busy()
        calls = [bench.submit(lane.name, lane) for lane in (Lane.JOBS, Lane.UNARY, Lane.LIVE_FINAL)]
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert bench.batches[1:] == [["LIVE_FINAL"], ["UNARY"], ["JOBS"]]


async def test_one_failing_piece_fails_alone():
    async with serving() as bench:
        bench.answer = lambda work: EngineFailed("no") if work == "bad" else work.upper()
        await bench.busy()
        good, bad, also_good = (bench.submit(work) for work in ("good", "bad", "also good"))
        await bench.threads.run_all()
        assert (await good).result == "GOOD"
        assert (await also_good).result == "ALSO GOOD"
        with pytest.raises(EngineFailed):
            await bad


async def test_one_that_makes_a_whole_batch_fail_fails_alone():
    async with serving() as bench:
        bench.breaks = lambda batch: "bad" in batch
        await bench.busy()
        good, bad, also_good = (bench.submit(work) for work in ("good", "bad", "also good"))
        await bench.threads.run_all()
        assert [(await good).result, (await also_good).result] == ["GOOD", "ALSO GOOD"]
        with pytest.raises(EngineFailed) as caught:
            await bad
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert (await one_more(bench)).result == "MORE"


async def test_answers_that_do_not_fit_the_questions_fail_and_do_not_hang():
    async with serving() as bench:
        bench.n_extra = 1
        call = bench.submit("asked")
        await bench.threads.run_all()
        with pytest.raises(EngineFailed):
            await call
        bench.n_extra = 0
        assert (await one_more(bench)).result == "MORE"


async def one_more(bench: Bench) -> Completed[str]:
    """The scheduler still serves."""
    call = bench.submit("more")
    await bench.threads.run_all()
    return await call


# ---- the line is bounded ----------------------------------------------------------------------------------------


async def test_a_full_line_refuses_and_says_when_to_come_again():
    async with serving(max_queued=3) as bench:
        await bench.measured(pace=2.0)
        await bench.busy()
        calls = [bench.submit(str(number)) for number in range(3)]
        await until_idle()
        with pytest.raises(Overloaded) as caught:
            await bench.submit("one too many")
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after_s == pytest.approx(2.0 + 3 * 2.0)  # the running one, and three in line
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert "one too many" not in [work for batch in bench.batches for work in batch]


async def test_a_line_full_of_patient_work_refuses_nobody_more_urgent():
    async with serving(max_queued=2) as bench:
        await bench.busy()
        calls = [bench.submit("job", Lane.JOBS) for _ in range(2)]
        await until_idle()
        final = bench.submit("final", Lane.LIVE_FINAL)
        with pytest.raises(Overloaded):
            await bench.submit("third job", Lane.JOBS)
        await bench.threads.run_all()
        assert (await final).result == "FINAL"
        await asyncio.gather(*calls)


async def test_what_has_begun_is_not_refused_by_a_line_that_filled_up_since():
    async with serving(max_queued=1) as bench:
        await bench.busy()
        waiting = bench.submit("waiting")
        await until_idle()
        begun = asyncio.create_task(
            bench.scheduler.submit("begun", key="k", cost_s=1.0, ticket=Ticket(), is_continuation=True)
        )
        await bench.threads.run_all()
        assert [(await waiting).result, (await begun).result] == ["WAITING", "BEGUN"]


# ---- cancelling -------------------------------------------------------------------------------------------------


async def test_a_cancelled_calls_work_never_runs():
    async with serving() as bench:
        await bench.busy()
        stays, goes = bench.submit("stays"), bench.submit("goes")
        await until_idle()
        goes.cancel()
        await bench.threads.run_all()
        assert (await stays).result == "STAYS"
        assert goes.cancelled()
        assert bench.batches == [["running"], ["stays"]]
        assert bench.scheduler.backlog_s(Lane.JOBS) == 0.0


async def test_a_call_cancelled_while_it_runs_is_known_to_the_model_and_breaks_nothing():
    async with serving() as bench:
        await bench.busy()
        stays, goes = bench.submit("stays"), bench.submit("goes")
        await until_idle()
        bench.threads.run()
        await bench.threads.until(n_waiting=1)  # both are in the batch now
        goes.cancel()
        await bench.threads.run_all()
        assert bench.batches[-1] == ["stays", "goes"]
        assert bench.unwanted == ["goes"]
        assert (await stays).result == "STAYS"
        assert (await one_more(bench)).result == "MORE"


async def test_after_a_batch_failed_the_cancelled_are_not_tried_again():
    async with serving() as bench:
        bench.breaks = lambda batch: len(batch) > 1
        await bench.busy()
        stays, goes = bench.submit("stays"), bench.submit("goes")
        await until_idle()
        bench.threads.run()
        await bench.threads.until(n_waiting=1)
        goes.cancel()
        await bench.threads.run_all()
        assert (await stays).result == "STAYS"
        assert bench.batches == [["running"], ["stays", "goes"], ["stays"]]


# ---- deadlines --------------------------------------------------------------------------------------------------


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    async with serving() as bench:
        await bench.measured(pace=2.0)
        running = await bench.busy()
        now_s = bench.clock.now_s()
        with pytest.raises(DeadlineExceeded):  # 2 s for what runs, 2 s for itself
            await bench.submit("too late", deadline_s=now_s + 3.9)
        in_time = bench.submit("in time", deadline_s=now_s + 4.1)
        await until_idle()
        assert not in_time.done()
        await bench.threads.run_all()
        await asyncio.gather(running, in_time)
        assert bench.batches == [["running"], ["in time"]]


async def test_a_deadline_that_has_passed_is_refused_before_anything_was_measured():
    async with serving() as bench:
        bench.clock.advance(10.0)
        with pytest.raises(DeadlineExceeded):
            await bench.submit("too late", deadline_s=10.0)
        assert bench.batches == []


async def test_a_deadline_that_passes_in_the_line_is_refused_at_its_turn_and_never_runs():
    async with serving() as bench:
        await bench.busy()
        late, other = bench.submit("late", deadline_s=5.0), bench.submit("other")
        await until_idle()
        bench.takes_s = 6.0
        await bench.threads.run_all()
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await other).result == "OTHER"
        assert bench.batches == [["running"], ["other"]]


async def test_one_callers_hundred_files_do_not_make_anothers_deadline_impossible():
    async with serving(max_batch=1) as bench:
        await bench.measured(pace=1.0)
        many = [bench.submit(str(number), caller="many") for number in range(100)]
        await until_idle()
        one = bench.submit("one", caller="one", deadline_s=bench.clock.now_s() + 5.0)
        await bench.threads.run_all()
        assert (await one).result == "ONE"
        await asyncio.gather(*many)


async def test_the_pace_is_measured_from_batches_that_worked():
    async with serving() as bench:
        bench.answer = lambda work: EngineFailed("no") if work == "bad" else work
        bench.takes_s = 100.0
        bad = bench.submit("bad")
        await bench.threads.run_all()
        with pytest.raises(EngineFailed):
            await bad
        await bench.measured(pace=3.0)
        await bench.busy()
        assert bench.scheduler.backlog_s(Lane.UNARY) == pytest.approx(3.0)


async def test_the_backlog_is_what_stands_before_new_work():
    async with serving(max_batch=1) as bench:
        assert bench.scheduler.backlog_s(Lane.UNARY) == 0.0
        await bench.measured(pace=2.0)
        assert bench.scheduler.backlog_s(Lane.UNARY) == 0.0
        await bench.busy()
        bench.clock.advance(0.5)
        calls = [bench.submit("unary", Lane.UNARY), bench.submit("job", Lane.JOBS)]
        await until_idle()
        assert bench.scheduler.backlog_s(Lane.LIVE_FINAL) == pytest.approx(1.5)
        assert bench.scheduler.backlog_s(Lane.UNARY) == pytest.approx(3.5)
        assert bench.scheduler.backlog_s(Lane.JOBS) == pytest.approx(5.5)
        await bench.threads.run_all()
        await asyncio.gather(*calls)


# ---- live work under load ---------------------------------------------------------------------------------------


async def test_under_backlog_interims_are_dropped_before_finals_wait():
    async with serving(max_batch=1, interim_max_wait_s=1.0) as bench:
        await bench.measured(pace=1.0)
        await bench.busy()
        first = bench.submit("first", Lane.LIVE_FINAL)
        await until_idle()
        with pytest.raises(Overloaded) as caught:
            await bench.submit("interim", Lane.LIVE_INTERIM)
        assert caught.value.reason == "INTERIM_DROPPED"
        second = bench.submit("second", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        assert [(await first).result, (await second).result] == ["FIRST", "SECOND"]


async def test_an_interim_that_waited_too_long_is_dropped_at_the_next_turn():
    async with serving(max_batch=1, interim_max_wait_s=1.0) as bench:
        await bench.busy()
        stale, final = bench.submit("stale", Lane.LIVE_INTERIM), bench.submit("final", Lane.LIVE_FINAL)
        await until_idle()
        bench.clock.advance(1.1)
        fresh = bench.submit("fresh", Lane.LIVE_INTERIM)
        await until_idle()
        await bench.threads.run_all()
        with pytest.raises(Overloaded) as caught:
            await stale
        assert caught.value.reason == "INTERIM_DROPPED"
        assert [(await final).result, (await fresh).result] == ["FINAL", "FRESH"]
        assert bench.batches == [["running"], ["final"], ["fresh"]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), min_size=1, max_size=40), st.floats(0.1, 4.0))
def test_finals_are_never_lost(steps: list[tuple[bool, float]], takes_s: float):
    async def talk() -> None:
        async with serving(max_batch=2, interim_max_wait_s=1.0, starve_after_s=2.0) as bench:
            bench.takes_s = takes_s
            finals, interims = [], []
            for number, (is_final, passed_s) in enumerate(steps):
                lane = Lane.LIVE_FINAL if is_final else Lane.LIVE_INTERIM
                (finals if is_final else interims).append(bench.submit(str(number), lane))
                await until_idle()
                bench.clock.advance(passed_s)
                if bench.threads.waiting and number % 2:
                    bench.threads.run()
            await bench.threads.run_all()
            assert len(await asyncio.gather(*finals)) == len(finals)
            for outcome in await asyncio.gather(*interims, return_exceptions=True):
                assert isinstance(outcome, Completed) or getattr(outcome, "reason", "") == "INTERIM_DROPPED"

    run_until_complete(talk())


# ---- gathering --------------------------------------------------------------------------------------------------


async def test_a_batch_does_not_wait_where_nothing_is_coming():
    async with serving(gather_ms=3_600_000.0) as bench:
        alone = bench.submit("alone")
        await bench.threads.run_all()
        assert (await alone).result == "ALONE"


async def test_a_batch_waits_for_work_that_is_on_its_way():
    async with serving(gather_ms=3_600_000.0) as bench:
        with bench.scheduler.expecting_work():
            first = bench.submit("first")
            await until_idle()
            assert bench.threads.waiting == []
        # As a call does it: on its way until now, and handed in by a task of its own.
        second = bench.submit("second")
        await bench.threads.run_all()
        await asyncio.gather(first, second)
        assert bench.batches == [["first", "second"]]


async def test_a_full_batch_does_not_wait():
    async with serving(gather_ms=3_600_000.0, max_batch=2) as bench:
        with bench.scheduler.expecting_work():
            calls = [bench.submit("first"), bench.submit("second")]
            await bench.threads.run_all()
            await asyncio.gather(*calls)
        assert bench.batches == [["first", "second"]]


async def test_a_batch_waits_no_longer_than_allowed():
    async with serving(gather_ms=5.0) as bench:
        with bench.scheduler.expecting_work():
            first = bench.submit("first")
            await until_idle()
            assert bench.threads.waiting == []
            bench.clock.advance(0.006)
            await bench.threads.until(n_waiting=1)
            await bench.threads.run_all()
            assert (await first).result == "FIRST"


# ---- workers and the end ----------------------------------------------------------------------------------------


async def test_several_workers_run_batches_side_by_side():
    async with serving(n_workers=2, max_batch=1) as bench:
        calls = [bench.submit(work) for work in ("one", "two", "three")]
        await bench.threads.until(n_waiting=2)
        bench.threads.run(1)  # the second is done first, and its worker takes the third
        await bench.threads.until(n_waiting=2)
        assert (await calls[1]).result == "TWO"
        assert not calls[0].done()
        await bench.threads.run_all()
        assert sorted([done.result for done in await asyncio.gather(*calls)]) == ["ONE", "THREE", "TWO"]


async def test_one_worker_has_one_batch_at_a_time():
    async with serving(n_workers=1, max_batch=1) as bench:
        calls = [bench.submit(work) for work in ("one", "two")]
        await until_idle()
        assert len(bench.threads.waiting) == 1
        await bench.threads.run_all()
        await asyncio.gather(*calls)


async def test_what_waits_is_shared_out_among_the_workers_that_are_free():
    async with serving(n_workers=2, max_batch=8) as bench:
        calls = [bench.submit(str(number)) for number in range(5)]
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert bench.batches == [["0", "1", "2"], ["3", "4"]]


@pytest.mark.parametrize("lane", [Lane.LIVE_INTERIM, Lane.BATCH, Lane.JOBS])
async def test_while_someone_speaks_the_last_free_worker_is_kept_from_what_can_wait(lane: Lane):
    async with serving(n_workers=2, max_batch=1, interim_max_wait_s=10.0) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        patient = [bench.submit(work, lane) for work in ("one", "two")]
        await until_idle()
        assert len(bench.threads.waiting) == 1
        final = bench.submit("final", Lane.LIVE_FINAL)
        await bench.threads.until(n_waiting=2)
        bench.threads.run(1)
        assert (await final).result == "FINAL"
        await bench.threads.run_all()
        await asyncio.gather(spoken, *patient)


async def test_what_yields_has_all_workers_again_when_nobody_spoke_for_a_while():
    async with serving(n_workers=2, max_batch=1) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        bench.clock.advance(LIVE_LASTS_S)
        patient = [bench.submit(work, Lane.JOBS) for work in ("one", "two")]
        await bench.threads.until(n_waiting=2)
        await bench.threads.run_all()
        await asyncio.gather(spoken, *patient)


async def test_what_starves_yields_no_longer():
    async with serving(n_workers=2, max_batch=1, starve_after_s=5.0) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        patient = [bench.submit(work, Lane.JOBS) for work in ("one", "two")]
        await bench.threads.until(n_waiting=1)
        bench.clock.advance(5.0)
        final = bench.submit("final", Lane.LIVE_FINAL)
        await bench.threads.until(n_waiting=2)
        await bench.threads.run_all()
        assert bench.batches == [["spoken"], ["one"], ["two"], ["final"]]
        await asyncio.gather(spoken, final, *patient)


async def test_batches_are_small_while_someone_speaks():
    async with serving(max_batch=8, max_batch_cost_s=4.0, live_batch_cost_s=2.0) as bench:
        await bench.busy()
        calls = [bench.submit(str(number), Lane.JOBS) for number in range(4)]
        calls.append(bench.submit("spoken", Lane.LIVE_FINAL, key="other"))
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert bench.batches[1:] == [["spoken"], ["0", "1"], ["2", "3"]]


async def test_stopping_tells_all_who_wait_and_all_who_come():
    bench = Bench(SchedulerOptions(gather_ms=0.0))
    await bench.scheduler.start()
    running = await bench.busy()
    waiting = bench.submit("waiting")
    await until_idle()
    await bench.scheduler.stop()
    late = bench.submit("late")
    for call in (running, waiting, late):
        with pytest.raises(Overloaded) as caught:
            await asyncio.wait_for(call, 5)
        assert caught.value.reason == "DRAINING"
        assert caught.value.retryable
    assert bench.batches == []


@pytest.mark.parametrize("lane", [Lane.UNARY, Lane.BATCH, Lane.JOBS])
async def test_a_caller_of_a_thousand_windows_leaves_room_in_line_and_the_next_turn_to_one_of_one(lane: Lane):
    async with serving(max_queued=64) as bench:
        many = [bench.submit(f"window {n}", lane, caller="many") for n in range(1000)]
        await until_idle()
        refused = [task.exception() for task in many if task.done()]
        assert {type(error) for error in refused} == {RateLimited}
        assert len(many) - len(refused) >= 48
        one = bench.submit("one", lane, caller="one")
        for _ in range(3):  # at most that which ran, and the next
            await until_idle()
            if not one.done():
                bench.threads.run()
        await until_idle()
        assert (await one).result == "ONE"
        await bench.threads.run_all()
        assert all(task.done() for task in many)


async def test_windows_of_a_call_that_is_begun_and_live_speech_are_not_refused_for_a_share():
    async with serving(max_queued=4) as bench:
        await bench.busy()
        waiting = [bench.submit(f"window {n}", caller="a") for n in range(2)]
        await until_idle()
        begun = asyncio.create_task(
            bench.scheduler.submit("more", key="k", cost_s=1.0, ticket=Ticket(Lane.UNARY, "a"), is_continuation=True)
        )
        live = [bench.submit(f"live {n}", Lane.LIVE_FINAL, caller="a") for n in range(4)]
        await bench.threads.run_all()
        assert [task.done() for task in (*waiting, begun, *live)] == [True] * 7
        assert not any(task.exception() for task in (*waiting, begun, *live))
