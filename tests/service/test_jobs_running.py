"""Which jobs run when, and what their watchers get."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.contract.conftest import chunk, new_job
from tests.harness import ServedJobs, pcm, serving_jobs
from tests.service.test_jobs import COMPLETED, PROCESSING, claimed, submitted, until, watched
from tests.service.test_transcribe import refused
from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.jobs import active_run, turns
from typeless_grpc.jobs.job import Job, State
from typeless_grpc.pb.v1 import jobs_pb2


async def test_jobs_wait_their_turn_by_priority(tmp_path: Path):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path, max_concurrent_jobs=1) as served:
        first = await submitted(served)
        await until(lambda: len(engine.calls) == 1)
        low, normal, high = [
            await submitted(served, priority=priority)
            for priority in (jobs_pb2.JOB_PRIORITY_LOW, jobs_pb2.JOB_PRIORITY_NORMAL, jobs_pb2.JOB_PRIORITY_HIGH)
        ]
        engine.gate.set()
        ended = [(await watched(served, job.job_id))[-1].job for job in (first, low, normal, high)]
    starts = {job.job_id: job.start_time.ToNanoseconds() for job in ended}
    assert starts[first.job_id] < starts[high.job_id] < starts[normal.job_id] < starts[low.job_id]


async def test_a_caller_with_many_jobs_does_not_delay_anothers(tmp_path: Path):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path, max_concurrent_jobs=1) as served:

        def submit(caller: str) -> str:
            return served.store.submit(new_job(owner=caller, caller=caller), pcm(1.0)).job_id

        many = [await asyncio.to_thread(submit, "busy") for _ in range(40)]
        few = [await asyncio.to_thread(submit, "quiet") for _ in range(2)]
        engine.gate.set()
        for job_id in few:
            assert (await asyncio.to_thread(ended, served, job_id)).state is State.COMPLETED
        n_before = sum([(await asyncio.to_thread(served.store.get, job_id, None)).state.is_final for job_id in many])
    assert n_before <= 4  # they take turns


@pytest.mark.parametrize("n_slots", [1, 3])
async def test_long_jobs_of_one_caller_yield_to_another(n_slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "LEAST_TURN_S", 0.0)
    monkeypatch.setattr(active_run, "TIMES_THE_START", 0.0)
    quiet_is_done = asyncio.Event()

    class Engine(ScriptedEngine):
        """Jobs of "busy" hardly get further than their first chunks before that of "quiet" is done."""

        async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
            if ticket.caller == "busy" and sum(one.ticket.caller == "busy" for one in self.calls) >= n_slots:
                with suppress(TimeoutError):  # a job yields after a chunk, so none may wait for ever
                    await asyncio.wait_for(quiet_is_done.wait(), 5.0)
            return await super().transcribe(audio, options, ticket)

    engine = Engine(lambda call: "x")
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path, max_concurrent_jobs=n_slots) as served:

        def submit(caller: str, seconds: float) -> str:
            return served.store.submit(new_job(owner=caller, caller=caller), pcm(seconds)).job_id

        long = [await asyncio.to_thread(submit, "busy", 100.0) for _ in range(n_slots + 2)]
        await engine.until(n_calls=n_slots)
        short = await asyncio.to_thread(submit, "quiet", 1.0)
        engine.gate.set()
        assert (await asyncio.to_thread(ended, served, short)).state is State.COMPLETED
        assert not any([(await asyncio.to_thread(served.store.get, job_id, None)).state.is_final for job_id in long])
        quiet_is_done.set()
        done = [await asyncio.to_thread(ended, served, job_id) for job_id in long]
    assert {(job.state, job.audio_s, job.n_chunks) for job in done} == {(State.COMPLETED, 100.0, 3)}
    n_samples = sum(len(call.audio) for call in engine.calls if call.ticket.caller == "busy")
    assert n_samples == len(long) * 100 * 16_000  # no chunk was done twice


def ended(served: ServedJobs, job_id: str) -> Job:
    """A job of any owner, once it has ended."""
    while not (job := served.store.get(job_id, None)).state.is_final:
        time.sleep(0.02)
    return job


async def test_no_more_jobs_run_at_once_than_configured(tmp_path: Path):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path, max_concurrent_jobs=2) as served:
        jobs = [await submitted(served) for _ in range(5)]
        await until(lambda: len(engine.calls) == 2)
        stats = await served.jobs.GetQueueStats(jobs_pb2.GetQueueStatsRequest())
        engine.gate.set()
        for job in jobs:
            assert (await watched(served, job.job_id))[-1].job.state == COMPLETED
    assert (stats.total, stats.processing, stats.pending) == (5, 2, 3)
    assert (stats.workers, stats.max_concurrent_jobs) == (1, 2)
    assert stats.HasField("oldest_pending_age")


async def test_running_jobs_continue_after_a_restart_of_the_server(tmp_path: Path):
    def held_after_the_first_chunk(call: EngineCall) -> str:
        if len(engine.calls) == 1:
            engine.gate.clear()
        return f"{len(engine.calls)}"

    engine = ScriptedEngine(held_after_the_first_chunk)
    async with serving_jobs(engine, tmp_path) as served:
        job = await submitted(served, 100.0)
        call = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id))
        while not (await call.read()).job.progress:
            pass
        call.cancel()
    engine.gate.set()
    async with serving_jobs(engine, tmp_path) as served:
        last = (await watched(served, job.job_id))[-1].job
    assert (last.state, last.attempt) == (COMPLETED, 2)
    assert last.transcript.audio_duration.seconds == 100
    assert len(engine.calls) <= 3 + 1  # three chunks, of which one at most was done again


# ---- the test as worker ---------------------------------------------------------------------------------------


async def test_a_watch_continues_after_the_last_received_segment(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        job = await submitted(served)
        run = await asyncio.to_thread(claimed, served, job)
        first = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id))
        assert (await first.read()).job.state == PROCESSING
        await asyncio.to_thread(served.runs.keep_chunk, run, chunk(0, "a", "b", progress=0.5))
        answer = await first.read()
        assert ([one.text for one in answer.new_segments], answer.job.progress) == (["a", "b"], 0.5)
        first.cancel()
        second = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id, next_segment_index=1))
        assert [(one.index, one.text) for one in (await second.read()).new_segments] == [(1, "b")]
        await asyncio.to_thread(served.runs.keep_chunk, run, chunk(1, "c", is_last=True, progress=1.0))
        assert [(one.index, one.text) for one in (await second.read()).new_segments] == [(2, "c")]
        await asyncio.to_thread(served.runs.complete, run)
        last = await second.read()
        assert (last.job.state, last.job.transcript.text, list(last.new_segments)) == (COMPLETED, "a b c", [])
        assert await second.read() is grpc.aio.EOF


async def test_a_watcher_gets_a_change_within_half_a_second(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        job = await submitted(served)
        calls = [served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id)) for _ in range(5)]
        run = await asyncio.to_thread(claimed, served, job)
        for call in calls:
            while (await call.read()).job.state != PROCESSING:
                pass
        delays_s = []
        for index in range(7):
            await asyncio.to_thread(served.runs.keep_chunk, run, chunk(index, "a", progress=0.1 * index))
            began_s = time.monotonic()
            for call in calls:
                assert len((await call.read()).new_segments) == 1
            delays_s.append(time.monotonic() - began_s)
    # The shortest: the interval of a poll is in each, and on a busy machine some take longer.
    assert min(delays_s) < 0.5


async def test_a_watch_of_a_job_that_is_deleted_ends(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        job = await submitted(served)
        call = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id))
        await call.read()
        await served.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job.job_id))
        failed = await refused(call.read())
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
