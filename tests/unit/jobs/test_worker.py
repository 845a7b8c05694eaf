"""How runs end, over a store on a file and an engine without a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed, InvalidInput, NotFound, Overloaded, SourceUnavailable
from typeless_grpc.jobs.active_run import ActiveRun
from typeless_grpc.jobs.job import Job, RetryPolicy, State
from typeless_grpc.jobs.worker import RunEnd, Worker, WorkerOptions

OPTIONS = WorkerOptions(shortest_chunk_s=4.0, retries=RetryPolicy(max_attempts=3, first_delay_s=2.0))


def worker(stores: Stores, engine: ScriptedEngine, name: str = "w1", admission: Admission | None = None) -> Worker:
    loop, counted = asyncio.get_running_loop(), admission or Admission(AdmissionOptions())
    return Worker(name, stores.runs, engine, loop, LoudnessDetector(), OPTIONS, counted)


def directly(work: Callable[[], bool]) -> bool:
    """Run a step that records nothing."""
    return work()


async def run(running: Worker, job: Job) -> RunEnd:
    return await asyncio.to_thread(running.run, job.job_id, directly)


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
    assert sum(len(call.audio) for call in engine.calls) == 160_000
    assert {call.ticket.caller for call in engine.calls} == {"key:1"}


async def test_a_run_continues_after_the_last_stored_chunk(stores: Stores):
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
    assert sum(len(call.audio) for call in engine.calls) == 160_000 + len(engine.calls[1].audio)


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


async def test_a_transient_fault_is_retried_later_and_not_for_ever(stores: Stores):
    engine = ScriptedEngine(lambda call: EngineFailed("broken"))
    job = stores.submit()
    for attempt in (1, 2, 3):
        assert now(stores, job).state is State.PENDING
        await run(worker(stores, engine), job)
        assert now(stores, job).attempt == attempt
    assert now(stores, job).state is State.FAILED
    assert [one.delay_s for one in stores.queue.queued] == [0.0, 2.0, 8.0]


async def test_a_request_to_a_full_engine_is_retried(stores: Stores):
    engine = ScriptedEngine(lambda call: Overloaded("full", retry_after_s=0.01) if len(engine.calls) < 4 else "x")
    job = stores.submit()
    await run(worker(stores, engine), job)
    assert (now(stores, job).state, now(stores, job).attempt, len(engine.calls)) == (State.COMPLETED, 1, 4)


async def test_a_job_whose_model_does_not_fit_now_leaves_its_slot_and_is_never_given_up(stores: Stores):
    full = Overloaded("no memory", reason="MODEL_DOES_NOT_FIT", retry_after_s=5.0)
    engine = ScriptedEngine(lambda call: full if len(engine.calls) < 8 else "x")
    job = stores.submit()
    for _ in range(7):
        await run(worker(stores, engine), job)
        assert now(stores, job).state is State.PENDING
    await run(worker(stores, engine), job)
    assert now(stores, job).state is State.COMPLETED
    assert min(one.delay_s for one in stores.queue.queued[1:]) == 5.0


async def test_a_store_that_is_unavailable_for_a_while_costs_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    keep, n_refused = stores.runs.keep_chunk, 0

    def unavailable(run: object, chunk: object) -> None:
        nonlocal n_refused
        n_refused += 1
        if n_refused <= 2:
            raise SourceUnavailable("down", reason="STORE_UNAVAILABLE", retry_after_s=1.0)
        keep(run, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(stores.runs, "keep_chunk", unavailable)
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit()
    await run(worker(stores, engine), job)
    assert (now(stores, job).state, len(engine.calls), n_refused) == (State.COMPLETED, 1, 3)


async def held(running: Worker, engine: ScriptedEngine, job: Job) -> asyncio.Task[RunEnd]:
    """Begin a run, and let it wait in the engine."""
    engine.gate.clear()
    task = asyncio.create_task(run(running, job))
    await engine.until(n_calls=1)
    return task


async def test_a_cancelled_job_stops_the_engines_work(stores: Stores):
    engine = ScriptedEngine()
    running = worker(stores, engine)
    job = stores.submit()
    task = await held(running, engine, job)
    stores.jobs.cancel(job.job_id, None)
    await asyncio.to_thread(running.drop_lost)
    assert await task is RunEnd.RELEASED
    assert engine.n_cancelled == 1
    assert now(stores, job).state is State.CANCELLED


class SlowToCancel(Future[Recognition]):
    """An inference whose cancellation takes until `may_end` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_awaited, self.is_cancelling, self.may_end = threading.Event(), threading.Event(), threading.Event()

    def result(self, timeout: float | None = None) -> Recognition:
        self.is_awaited.set()
        return super().result(timeout)

    def cancel(self) -> bool:
        self.is_cancelling.set()
        self.may_end.wait(10)
        return super().cancel()


def test_an_inference_that_ends_while_its_run_is_stopped_is_kept_until_the_stop_has_ended(stores: Stores):
    started = stores.runs.claim(stores.submit().job_id, "w1")
    assert started is not None
    active, inference = ActiveRun(started), SlowToCancel()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(active.result, inference)
        assert inference.is_awaited.wait(10)
        stopping = pool.submit(lambda: active.stop(is_lost=False))
        assert inference.is_cancelling.wait(10)
        inference.set_exception(EngineFailed("broken"))
        assert not wait([waiting, stopping], timeout=0.1).done
        inference.may_end.set()
        stopping.result(10)
        with pytest.raises(EngineFailed):
            waiting.result(10)


async def test_a_worker_that_stops_hands_its_jobs_back(stores: Stores):
    engine = ScriptedEngine()
    running = worker(stores, engine)
    job = stores.submit()
    task = await held(running, engine, job)
    await asyncio.to_thread(running.stop, 5.0)
    assert await task is RunEnd.RELEASED
    assert (now(stores, job).state, engine.n_cancelled) == (State.PENDING, 1)
    assert not stores.runs.is_quarantined(job.job_id)
    assert await run(running, job) is RunEnd.RELEASED
    assert (now(stores, job).state, now(stores, job).attempt) == (State.PENDING, 1)


async def test_a_job_yields_between_two_chunks_and_continues_with_the_next(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("typeless_grpc.jobs.active_run.TIMES_THE_START", 0.0)
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(10), caller="key:1")
    callers = list[str]()

    def is_over(caller: str, ran_s: float) -> bool:
        callers.append(caller)
        return True

    running = worker(stores, engine)
    for n_chunks in (1, 2):
        assert await asyncio.to_thread(running.run, job.job_id, directly, is_over) is RunEnd.PREEMPTED
        assert (now(stores, job).state, now(stores, job).n_chunks) == (State.PENDING, n_chunks)
        assert not stores.runs.is_quarantined(job.job_id)
    assert await asyncio.to_thread(running.run, job.job_id, directly, is_over) is RunEnd.SETTLED
    assert (now(stores, job).state, now(stores, job).n_chunks) == (State.COMPLETED, 3)
    assert callers == ["key:1"] * 2  # not after the last
    assert sum(len(one.audio) for one in engine.calls) == 160_000


async def test_quarantined_jobs_run_one_at_a_time_until_they_have_stored_a_chunk(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    jobs = [stores.submit(content=audio(10)) for _ in range(3)]
    for job in jobs:
        stores.runs.claim(job.job_id, "one that died")
    engine.gate.clear()
    running = worker(stores, engine)
    tasks = [asyncio.create_task(run(running, job)) for job in jobs]
    async with asyncio.timeout(20):
        await engine.until(n_calls=1)
        await asyncio.wait(tasks, timeout=0.3)
        assert len(engine.calls) == 1
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert {now(stores, job).state for job in jobs} == {State.COMPLETED}


async def test_a_deleted_job_is_not_run(stores: Stores):
    engine = ScriptedEngine()
    job = stores.submit()
    stores.jobs.delete(job.job_id, None)
    await run(worker(stores, engine), job)
    assert engine.calls == []


async def test_a_language_that_is_clear_is_expected_of_what_follows(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(40))
    await run(worker(stores, engine), job)
    assert [call.options.expected_language for call in engine.calls][:5] == ["", "en", "en", "en", "en"]
    assert {call.options.language for call in engine.calls} == {None}  # it may still change
    given = stores.submit(content=audio(40), options=DecodeOptions(language="de"))
    engine.calls.clear()
    await run(worker(stores, engine), given)
    assert {(call.options.language, call.options.expected_language) for call in engine.calls} == {("de", "")}


class ProcessKilled(BaseException):
    """Ends a run as the end of its process would: no code of the worker handles it."""


async def test_a_step_that_was_recorded_is_not_done_again(stores: Stores):
    engine = ScriptedEngine(lambda call: "x")
    job = stores.submit(content=audio(10))
    first = worker(stores, engine)
    recorded: list[bool] = []

    def step(work: Callable[[], bool]) -> bool:
        recorded.append(work())
        if len(recorded) == 2:
            raise ProcessKilled
        return recorded[-1]

    with pytest.raises(ProcessKilled):
        await asyncio.to_thread(first.run, job.job_id, step)
    replayed = iter(recorded)

    def replay(work: Callable[[], bool]) -> bool:
        answer = next(replayed, None)
        return work() if answer is None else answer

    await asyncio.to_thread(worker(stores, engine, "w2").run, job.job_id, replay)
    assert now(stores, job).state is State.COMPLETED
    assert sum(len(call.audio) for call in engine.calls) == 160_000


def test_workers_share_a_process_without_sharing_jobs(stores: Stores):
    job = stores.submit()
    together = threading.Barrier(4)

    def claim(name: str) -> bool:
        together.wait()
        return stores.runs.claim(job.job_id, name) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, "abcd"))
    # Each claim took the job from the one before; after three without an outcome the job failed.
    assert now(stores, job).state is State.FAILED


async def test_audio_of_a_run_counts_with_that_of_calls_until_the_run_ends(stores: Stores):
    engine, admission, released = ScriptedEngine(lambda call: "x"), Admission(AdmissionOptions()), asyncio.Event()
    admission.freed = released.set
    engine.gate.clear()
    room_s = admission.room_s
    running = asyncio.create_task(run(worker(stores, engine, admission=admission), stores.submit(content=audio(10))))
    await engine.until(n_calls=1)
    assert admission.room_s == room_s - 2 * 2 * OPTIONS.shortest_chunk_s
    engine.gate.set()
    await running
    await asyncio.wait_for(released.wait(), 30)
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
        assert await running is RunEnd.RELEASED
    assert now(stores, job).state is State.PENDING
