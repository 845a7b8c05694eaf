from __future__ import annotations

import asyncio

import pytest

from tests.unit.engine.scheduler_bench import SchedulerBench, serving
from tests.unit.idle import until_idle
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.scheduler import Completed, Timing
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded


async def test_an_engine_whose_work_does_not_end_is_stalled():
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


async def test_an_engine_whose_worker_crashed_is_stalled_for_ever():
    async with serving() as bench:
        bench.crashes = True
        waiting = bench.submit("work")
        await bench.threads.run_all()
        assert bench.scheduler.stalled_s == float("inf")
        waiting.cancel()


# ---- results ----------------------------------------------------------------------------------------------------


async def test_work_gets_its_result_and_its_timing():
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


async def test_work_of_several_callers_with_equal_keys_is_one_batch():
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


async def test_an_item_with_an_exception_fails_alone():
    async with serving() as bench:
        bench.answer = lambda work: EngineFailed("no") if work == "bad" else work.upper()
        await bench.busy()
        good, bad, also_good = (bench.submit(work) for work in ("good", "bad", "also good"))
        await bench.threads.run_all()
        assert (await good).result == "GOOD"
        assert (await also_good).result == "ALSO GOOD"
        with pytest.raises(EngineFailed):
            await bad


async def test_an_item_that_breaks_its_batch_fails_alone():
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


async def test_a_wrong_number_of_results_fails_and_does_not_hang():
    async with serving() as bench:
        bench.n_extra = 1
        call = bench.submit("work")
        await bench.threads.run_all()
        with pytest.raises(EngineFailed):
            await call
        bench.n_extra = 0
        assert (await one_more(bench)).result == "MORE"


async def one_more(bench: SchedulerBench) -> Completed[str]:
    """The scheduler still serves."""
    call = bench.submit("more")
    await bench.threads.run_all()
    return await call


# ---- the queue is bounded ---------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_work_with_a_time_to_retry():
    async with serving(max_queued=3) as bench:
        await bench.measured(pace=2.0)
        await bench.busy()
        calls = [bench.submit(str(number)) for number in range(3)]
        await until_idle()
        with pytest.raises(Overloaded) as caught:
            await bench.submit("one too many")
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after_s == pytest.approx(2.0 + 3 * 2.0)  # the running one, and three in the queue
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert "one too many" not in [work for batch in bench.batches for work in batch]


async def test_a_queue_full_of_less_urgent_work_refuses_no_urgent_work():
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


async def test_continued_work_is_not_refused_by_a_full_queue():
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


async def test_work_of_a_cancelled_call_never_runs():
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


async def test_work_cancelled_while_it_runs_is_not_wanted_and_breaks_nothing():
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


async def test_cancelled_work_of_a_failed_batch_is_not_retried():
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


async def test_work_whose_deadline_passes_in_the_queue_never_runs():
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


async def test_a_caller_with_a_hundred_files_does_not_make_anothers_deadline_impossible():
    async with serving(max_batch=1) as bench:
        await bench.measured(pace=1.0)
        many = [bench.submit(str(number), caller="many") for number in range(100)]
        await until_idle()
        one = bench.submit("one", caller="one", deadline_s=bench.clock.now_s() + 5.0)
        await bench.threads.run_all()
        assert (await one).result == "ONE"
        await asyncio.gather(*many)


async def test_the_pace_is_measured_on_successful_batches():
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


async def test_the_backlog_is_the_work_ahead_of_new_work():
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
