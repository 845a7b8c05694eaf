"""A worker's ways of ending a run, over a store on a file and an engine without a model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed, InvalidInput, NotFound, Overloaded, SourceUnavailable
from typeless_grpc.jobs.job import Job, RetryPolicy, State
from typeless_grpc.jobs.worker import MadeWay, Released, Worker, WorkerOptions, _Hold

OPTIONS = WorkerOptions(shortest_chunk_s=4.0, retries=RetryPolicy(max_attempts=3, first_delay_s=2.0))


def worker(stores: Stores, engine: ScriptedEngine, name: str = "w1", admission: Admission | None = None) -> Worker:
    loop, counted = asyncio.get_running_loop(), admission or Admission(AdmissionOptions())
    return Worker(name, stores.runs, engine, loop, LoudnessDetector(), OPTIONS, counted)


def directly(work: Callable[[], bool]) -> bool:
    """A step that records nothing."""
    return work()


async def run(running: Worker, job: Job) -> None:
    await asyncio.to_thread(running.run, job.job_id, directly)


def now(stores: Stores, job: Job) -> Job:
    return stores.jobs.get(job.job_id, None)


def audio(seconds: int) -> bytes:
    return bytes(2 * 16_000 * seconds)


async def test_a_run_goes_through_all_chunks(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(10), caller="key:1")
    await run(worker(stores, engine), job)
    done = now(stores, job)
    assert (done.state, done.audio_s, done.n_chunks, done.n_windows) == (State.COMPLETED, 10.0, 3, 3)
    assert sum(len(asked.audio) for asked in engine.calls) == 160_000
    assert {asked.ticket.caller for asked in engine.calls} == {"key:1"}


async def test_a_run_goes_on_after_the_last_chunk_that_was_kept(stores: Stores):
    crash = True

    def script(call: EngineCall) -> str | BaseException:
        return RuntimeError("the power fails") if crash and len(engine.calls) == 2 else "x"

    engine = ScriptedEngine(script)
    job = stores.submit(content=audio(10))
    await run(worker(stores, engine), job)
    assert (now(stores, job).state, now(stores, job).n_chunks) == (State.PENDING, 1)
    crash = False
    await run(worker(stores, engine, "w2"), job)
    assert now(stores, job).state is State.COMPLETED
    assert sum(len(asked.audio) for asked in engine.calls) == 160_000 + len(engine.calls[1].audio)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidInput("options.language", "no", reason="LANGUAGE_NOT_SUPPORTED"), "LANGUAGE_NOT_SUPPORTED"),
        (NotFound("no model", reason="MODEL_NOT_FOUND"), "MODEL_NOT_FOUND"),
    ],
)
async def test_a_fault_of_the_request_fails_the_job_at_once(stores: Stores, error: Exception, reason: str):
    job = stores.submit()
    await run(worker(stores, ScriptedEngine(lambda call: error)), job)
    failed = now(stores, job)
    assert failed.state is State.FAILED
    assert failed.failure is not None
    assert failed.failure.reason == reason


async def test_a_fault_that_can_pass_is_tried_again_later_and_not_for_ever(stores: Stores):
    engine = ScriptedEngine(lambda call: EngineFailed("broken"))
    job = stores.submit()
    for attempt in (1, 2, 3):
        assert now(stores, job).state is State.PENDING
        await run(worker(stores, engine), job)
        assert now(stores, job).attempt == attempt
    assert now(stores, job).state is State.FAILED
    assert [one.delay_s for one in stores.queue.queued] == [0.0, 2.0, 8.0]


async def test_a_full_engine_is_asked_again(stores: Stores):
    engine = ScriptedEngine(lambda call: Overloaded("full", retry_after_s=0.01) if len(engine.calls) < 4 else "x")
    job = stores.submit()
    await run(worker(stores, engine), job)
    assert (now(stores, job).state, now(stores, job).attempt, len(engine.calls)) == (State.COMPLETED, 1, 4)


async def test_a_job_whose_model_does_not_fit_now_leaves_its_place_and_is_never_given_up(stores: Stores):
    full = Overloaded("no memory", reason="MODEL_DOES_NOT_FIT", retry_after_s=5.0)
    engine = ScriptedEngine(lambda call: full if len(engine.calls) < 8 else "x")
    job = stores.submit()
    for _ in range(7):
        await run(worker(stores, engine), job)
        assert now(stores, job).state is State.PENDING
    await run(worker(stores, engine), job)
    assert now(stores, job).state is State.COMPLETED
    assert min(one.delay_s for one in stores.queue.queued[1:]) == 5.0


async def test_a_store_that_is_away_for_a_while_costs_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    keep, n_refused = stores.runs.keep_chunk, 0

    def away(run: object, chunk: object) -> None:
        nonlocal n_refused
        n_refused += 1
        if n_refused <= 2:
            raise SourceUnavailable("away", reason="STORE_UNAVAILABLE", retry_after_s=1.0)
        keep(run, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(stores.runs, "keep_chunk", away)
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit()
    await run(worker(stores, engine), job)
    assert (now(stores, job).state, len(engine.calls), n_refused) == (State.COMPLETED, 1, 3)


async def held(running: Worker, engine: ScriptedEngine, job: Job) -> asyncio.Task[None]:
    """A run that stands within the engine."""
    engine.gate.clear()
    task = asyncio.create_task(run(running, job))
    async with asyncio.timeout(10):
        while not engine.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return task


async def test_a_cancelled_job_stops_the_engines_work(stores: Stores):
    engine = ScriptedEngine()
    running = worker(stores, engine)
    job = stores.submit()
    task = await held(running, engine, job)
    stores.jobs.cancel(job.job_id, None)
    await asyncio.to_thread(running.drop_lost)
    with pytest.raises(Released):
        await task
    assert engine.n_cancelled == 1
    assert now(stores, job).state is State.CANCELLED


def test_work_that_ends_while_its_run_is_stopped_is_let_go_of_afterwards(stores: Stores):
    started = stores.runs.claim(stores.submit().job_id, "w1")
    assert started is not None
    hold, inference = _Hold(started), Future[Recognition]()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold.result, inference)
        while hold._inference is None:
            time.sleep(0.001)
        with hold._lock:  # `stop` has it from its look at the work to the end of it
            inference.set_exception(EngineFailed("broken"))
            assert not wait([waiting], timeout=0.1).done
            assert hold._inference is inference
        with pytest.raises(EngineFailed):
            waiting.result(10)
    assert hold._inference is None


async def test_a_worker_that_stops_hands_its_jobs_back(stores: Stores):
    engine = ScriptedEngine()
    running = worker(stores, engine)
    job = stores.submit()
    task = await held(running, engine, job)
    await asyncio.to_thread(running.stop, 5.0)
    with pytest.raises(Released):
        await task
    assert (now(stores, job).state, engine.n_cancelled) == (State.PENDING, 1)
    assert not stores.runs.is_suspect(job.job_id)
    with pytest.raises(Released):
        await run(running, job)
    assert (now(stores, job).state, now(stores, job).attempt) == (State.PENDING, 1)


async def test_a_job_makes_way_between_two_chunks_and_goes_on_with_the_next(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("typeless_grpc.jobs.worker.TIMES_THE_START", 0.0)
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(10), caller="key:1")
    asked = list[str]()

    def is_over(caller: str, ran_s: float) -> bool:
        asked.append(caller)
        return True

    running = worker(stores, engine)
    for n_chunks in (1, 2):
        with pytest.raises(MadeWay):
            await asyncio.to_thread(running.run, job.job_id, directly, is_over)
        assert (now(stores, job).state, now(stores, job).n_chunks) == (State.PENDING, n_chunks)
        assert not stores.runs.is_suspect(job.job_id)
    await asyncio.to_thread(running.run, job.job_id, directly, is_over)
    assert (now(stores, job).state, now(stores, job).n_chunks) == (State.COMPLETED, 3)
    assert asked == ["key:1"] * 2  # not after the last
    assert sum(len(one.audio) for one in engine.calls) == 160_000


async def test_suspects_run_one_at_a_time_until_they_have_kept_a_chunk(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    jobs = [stores.submit(content=audio(10)) for _ in range(3)]
    for job in jobs:
        stores.runs.claim(job.job_id, "one that died")
    engine.gate.clear()
    running = worker(stores, engine)
    tasks = [asyncio.create_task(run(running, job)) for job in jobs]
    async with asyncio.timeout(20):
        while not engine.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert len(engine.calls) == 1
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert {now(stores, job).state for job in jobs} == {State.COMPLETED}


async def test_a_job_that_is_gone_is_nobodys_work(stores: Stores):
    engine = ScriptedEngine()
    job = stores.submit()
    stores.jobs.delete(job.job_id, None)
    await run(worker(stores, engine), job)
    assert engine.calls == []


async def test_a_language_that_is_clear_is_expected_of_what_follows(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(40))
    await run(worker(stores, engine), job)
    assert [asked.options.expected_language for asked in engine.calls][:5] == ["", "en", "en", "en", "en"]
    assert {asked.options.language for asked in engine.calls} == {None}  # it may still change
    given = stores.submit(content=audio(40), options=DecodeOptions(language="de"))
    engine.calls.clear()
    await run(worker(stores, engine), given)
    assert {(asked.options.language, asked.options.expected_language) for asked in engine.calls} == {("de", "")}


async def test_a_step_that_was_recorded_is_not_done_again(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(10))
    first = worker(stores, engine)
    recorded: list[bool] = []

    def step(work: Callable[[], bool]) -> bool:
        recorded.append(work())
        if len(recorded) == 2:
            raise Released
        return recorded[-1]

    with pytest.raises(Released):
        await asyncio.to_thread(first.run, job.job_id, step)
    replayed = iter(recorded)

    def replay(work: Callable[[], bool]) -> bool:
        answer = next(replayed, None)
        return work() if answer is None else answer

    await asyncio.to_thread(worker(stores, engine, "w2").run, job.job_id, replay)
    assert now(stores, job).state is State.COMPLETED
    assert sum(len(asked.audio) for asked in engine.calls) == 160_000


def test_workers_share_a_process_without_sharing_jobs(stores: Stores):
    job = stores.submit()
    together = threading.Barrier(4)

    def claim(name: str) -> bool:
        together.wait()
        return stores.runs.claim(job.job_id, name) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, "abcd"))
    # Each claim took over from the one before; after three without a word the job was given up.
    assert now(stores, job).state is State.FAILED


async def test_what_a_run_holds_is_counted_with_the_audio_of_calls_and_released_at_its_end(stores: Stores):
    engine, admission, released = ScriptedEngine(lambda call: "x"), Admission(AdmissionOptions()), asyncio.Event()
    admission.freed = released.set
    engine.gate.clear()
    room_s = admission.room_s
    running = asyncio.create_task(run(worker(stores, engine, admission=admission), stores.submit(content=audio(10))))
    await engine.until(n_calls=1)
    assert admission.room_s == room_s - 2 * 2 * OPTIONS.shortest_chunk_s
    engine.gate.set()
    await running
    await asyncio.wait_for(released.wait(), 5)
    assert (admission.room_s, admission.n_callers) == (room_s, 0)


async def test_a_run_waits_until_calls_leave_room_for_its_audio(stores: Stores):
    engine, admission = ScriptedEngine(lambda call: "x"), Admission(AdmissionOptions(max_audio_s=100.0))
    job = stores.submit(content=audio(10))
    with admission.audio(70.0, "one"), admission.audio(20.0, "another"):
        running = asyncio.create_task(run(worker(stores, engine, admission=admission), job))
        await asyncio.wait([running], timeout=0.5)
        assert not engine.calls
    await running
    assert now(stores, job).state is State.COMPLETED


async def test_a_run_that_waits_for_room_stops_with_its_worker(stores: Stores):
    engine, admission = ScriptedEngine(lambda call: "x"), Admission(AdmissionOptions(max_audio_s=100.0))
    job, working = stores.submit(content=audio(10)), worker(stores, engine, admission=admission)
    with admission.audio(70.0, "one"), admission.audio(20.0, "another"):
        running = asyncio.create_task(run(working, job))
        await asyncio.wait([running], timeout=0.3)
        await asyncio.to_thread(working.stop, 5.0)
        with pytest.raises(Released):
            await running
    assert now(stores, job).state is State.PENDING
