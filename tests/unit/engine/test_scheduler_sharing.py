"""How work shares the engine: live speech, batches that wait, several workers, callers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.scheduler_bench import SchedulerBench, serving
from tests.unit.idle import run_until_complete, until_idle
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engine.scheduler import LIVE_LASTS_S, Completed, SchedulerOptions
from typeless_grpc.errors import Overloaded, RateLimited

# ---- live speech ------------------------------------------------------------------------------------------------


async def test_interims_are_dropped_before_finals_wait():
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


# ---- batches that wait ------------------------------------------------------------------------------------------


async def test_a_batch_does_not_wait_if_no_work_is_expected():
    async with serving(gather_ms=3_600_000.0) as bench:
        alone = bench.submit("alone")
        await bench.threads.run_all()
        assert (await alone).result == "ALONE"


async def test_a_batch_waits_for_expected_work():
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


# ---- workers, stopping, callers ---------------------------------------------------------------------------------


async def test_several_workers_run_batches_in_parallel():
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


async def test_queued_work_is_shared_out_among_the_free_workers():
    async with serving(n_workers=2, max_batch=8) as bench:
        calls = [bench.submit(str(number)) for number in range(5)]
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert bench.batches == [["0", "1", "2"], ["3", "4"]]


@pytest.mark.parametrize("lane", [Lane.LIVE_INTERIM, Lane.BATCH, Lane.JOBS])
async def test_the_last_free_worker_is_reserved_for_live_speech(lane: Lane):
    async with serving(n_workers=2, max_batch=1, interim_max_wait_s=10.0) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        less_urgent = [bench.submit(work, lane) for work in ("one", "two")]
        await until_idle()
        assert len(bench.threads.waiting) == 1
        final = bench.submit("final", Lane.LIVE_FINAL)
        await bench.threads.until(n_waiting=2)
        bench.threads.run(1)
        assert (await final).result == "FINAL"
        await bench.threads.run_all()
        await asyncio.gather(spoken, *less_urgent)


async def test_yielding_lanes_have_all_workers_again_after_live_speech():
    async with serving(n_workers=2, max_batch=1) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        bench.clock.advance(LIVE_LASTS_S)
        less_urgent = [bench.submit(work, Lane.JOBS) for work in ("one", "two")]
        await bench.threads.until(n_waiting=2)
        await bench.threads.run_all()
        await asyncio.gather(spoken, *less_urgent)


async def test_a_starving_lane_does_not_yield():
    async with serving(n_workers=2, max_batch=1, starve_after_s=5.0) as bench:
        spoken = bench.submit("spoken", Lane.LIVE_FINAL)
        await bench.threads.run_all()
        less_urgent = [bench.submit(work, Lane.JOBS) for work in ("one", "two")]
        await bench.threads.until(n_waiting=1)
        bench.clock.advance(5.0)
        final = bench.submit("final", Lane.LIVE_FINAL)
        await bench.threads.until(n_waiting=2)
        await bench.threads.run_all()
        assert bench.batches == [["spoken"], ["one"], ["two"], ["final"]]
        await asyncio.gather(spoken, final, *less_urgent)


async def test_batches_are_small_during_live_speech():
    async with serving(max_batch=8, max_batch_cost_s=4.0, live_batch_cost_s=2.0) as bench:
        await bench.busy()
        calls = [bench.submit(str(number), Lane.JOBS) for number in range(4)]
        calls.append(bench.submit("spoken", Lane.LIVE_FINAL, key="other"))
        await bench.threads.run_all()
        await asyncio.gather(*calls)
        assert bench.batches[1:] == [["spoken"], ["0", "1"], ["2", "3"]]


async def test_stopping_refuses_queued_and_new_work():
    bench = SchedulerBench(SchedulerOptions(max_batch=8, gather_ms=0.0))
    await bench.scheduler.start()
    running = await bench.busy()
    waiting = bench.submit("waiting")
    await until_idle()
    await bench.scheduler.stop()
    late = bench.submit("late")
    for call in (running, waiting, late):
        with pytest.raises(Overloaded) as caught:
            await asyncio.wait_for(call, 30)
        assert caught.value.reason == "DRAINING"
        assert caught.value.retryable
    assert bench.batches == []


@pytest.mark.parametrize("lane", [Lane.UNARY, Lane.BATCH, Lane.JOBS])
async def test_a_caller_of_a_thousand_windows_leaves_slots_and_the_next_turn_to_others(lane: Lane):
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


async def test_continued_work_and_live_speech_are_not_refused_for_a_share():
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
