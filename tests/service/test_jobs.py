"""JobsService over a real channel: run by a real worker in this process, or by the test where it must hold still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from tests.contract.conftest import chunk
from tests.harness import AUDIO, ServedJobs, fixture, pcm, serving_jobs
from tests.service.access import ADMIN, KEYS, USER
from tests.service.test_transcribe import refused
from typeless_grpc.client import AsyncClient
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import EngineFailed
from typeless_grpc.jobs.job import Failure
from typeless_grpc.jobs.store import Run
from typeless_grpc.pb.v1 import audio_pb2, jobs_pb2, jobs_pb2_grpc, transcript_pb2, transcription_pb2

SRT = transcript_pb2.OUTPUT_FORMAT_SRT
PENDING, PROCESSING = jobs_pb2.JOB_STATE_PENDING, jobs_pb2.JOB_STATE_PROCESSING
COMPLETED, FAILED, CANCELLED = (
    jobs_pb2.JOB_STATE_COMPLETED,
    jobs_pb2.JOB_STATE_FAILED,
    jobs_pb2.JOB_STATE_CANCELLED,
)
AS_USER, AS_ADMIN = (("x-api-key", USER),), (("x-api-key", ADMIN),)


def submission(seconds: float = 1.0, **fields: Any) -> jobs_pb2.SubmitJobRequest:
    source = audio_pb2.AudioSource(
        content=pcm(seconds),
        format=audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000),
    )
    return jobs_pb2.SubmitJobRequest(**{"audio": source} | fields)


async def submitted(served: ServedJobs, seconds: float = 1.0, **fields: Any) -> jobs_pb2.Job:
    return (await served.jobs.SubmitJob(submission(seconds, **fields))).job


async def found(served: ServedJobs, job_id: str) -> jobs_pb2.Job:
    return (await served.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job


async def watched(served: ServedJobs, job_id: str, next_index: int = 0) -> list[jobs_pb2.WatchJobResponse]:
    call = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, next_segment_index=next_index))
    async with asyncio.timeout(30):
        return [answer async for answer in call]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the scripted engine saw; it has no event of its own for that."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def claimed(served: ServedJobs, job: jobs_pb2.Job) -> Run:
    run = served.runs.claim(job.job_id, "the test")
    assert run is not None
    return run


# ---- a worker in this process ---------------------------------------------------------------------------------


async def test_a_job_is_accepted_run_and_watched_to_its_end(tmp_path: Path):
    engine = ScriptedEngine(lambda call: f"{len(call.audio) / 16_000:.0f} s")
    async with serving_jobs(engine, tmp_path) as served:
        job = await submitted(served, 100.0, labels={"a": "b"}, priority=jobs_pb2.JOB_PRIORITY_HIGH)
        assert (job.state, job.attempt, job.progress) == (PENDING, 0, 0.0)
        assert job.priority == jobs_pb2.JOB_PRIORITY_HIGH
        assert not job.HasField("start_time")
        answers = await watched(served, job.job_id)
        last = answers[-1].job
        assert last == await found(served, job.job_id)
    assert last.state == COMPLETED
    assert (last.progress, last.attempt, dict(last.labels)) == (1.0, 1, {"a": "b"})
    assert last.audio_duration.ToTimedelta().total_seconds() == 100.0
    assert last.stats.chunk_count == 3
    assert last.stats.realtime_factor > 0
    assert last.expire_time.seconds - last.end_time.seconds == pytest.approx(86_400, abs=1)
    assert last.create_time.ToNanoseconds() <= last.start_time.ToNanoseconds() <= last.end_time.ToNanoseconds()
    segments = [segment for answer in answers for segment in answer.new_segments]
    assert segments == list(last.transcript.segments)
    assert [segment.index for segment in segments] == [0, 1, 2]
    assert last.transcript.text == " ".join(segment.text for segment in segments)
    ends_s = [segment.end_offset.ToTimedelta().total_seconds() for segment in segments]
    assert ends_s == sorted(ends_s)
    assert ends_s[-1] == 100.0
    progress = [answer.job.progress for answer in answers]
    assert progress == sorted(progress)
    assert {call.ticket.lane for call in engine.calls} == {Lane.JOBS}


async def test_a_compressed_recording_is_transcribed_too(tmp_path: Path):
    source = audio_pb2.AudioSource(content=(AUDIO / "en_minute.ogg").read_bytes())
    async with serving_jobs(ScriptedEngine(lambda call: "text"), tmp_path) as served:
        job = await submitted(served, audio=source)
        last = (await watched(served, job.job_id))[-1].job
    assert last.state == COMPLETED
    duration_s = fixture("en_minute.ogg")["duration_s"]
    assert last.audio_duration.ToTimedelta().total_seconds() == pytest.approx(duration_s, abs=0.1)


async def test_audio_that_never_decodes_fails_at_once_and_says_why(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path) as served:
        job = await submitted(served, audio=audio_pb2.AudioSource(content=b"no audio at all"))
        last = (await watched(served, job.job_id))[-1].job
    assert last.state == FAILED
    assert (last.failure.reason, last.failure.code) == ("AUDIO_UNDECODABLE", code_pb2.INVALID_ARGUMENT)
    assert not last.failure.HasField("retry_delay")
    assert last.attempt == 1
    assert not last.HasField("transcript")


async def test_a_transient_fault_is_retried(tmp_path: Path):
    engine = ScriptedEngine(lambda call: EngineFailed("once") if len(engine.calls) == 1 else "at last")
    async with serving_jobs(engine, tmp_path, job_retry_delay_s=0.1) as served:
        job = await submitted(served)
        last = (await watched(served, job.job_id))[-1].job
    assert (last.state, last.attempt, last.transcript.text) == (COMPLETED, 2, "at last")


async def test_a_permanent_fault_fails_the_job(tmp_path: Path):
    engine = ScriptedEngine(lambda call: EngineFailed("always"))
    async with serving_jobs(engine, tmp_path, job_retry_delay_s=0.1, job_max_attempts=2) as served:
        job = await submitted(served)
        last = (await watched(served, job.job_id))[-1].job
    assert (last.state, last.attempt) == (FAILED, 2)
    assert (last.failure.reason, last.failure.code) == ("ENGINE_FAILED", code_pb2.INTERNAL)


async def test_a_running_job_is_cancelled_with_the_engines_work(tmp_path: Path):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path) as served:
        job = await submitted(served)
        call = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id))
        while (await call.read()).job.state != PROCESSING:
            pass
        await until(lambda: len(engine.calls) == 1)
        cancelled = await served.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job.job_id))
        async with asyncio.timeout(30):  # half a second where nothing else runs: `benchmarks.jobs` measures it
            while (await call.read()).job.state != CANCELLED:
                pass
            await until(lambda: engine.n_cancelled == 1)
    assert cancelled.job.state == CANCELLED
    assert engine.n_cancelled == 1


async def test_the_same_request_makes_one_job_however_often_it_is_sent(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        jobs = await asyncio.gather(*(submitted(served, request_id="r1") for _ in range(8)))
        assert len({job.job_id for job in jobs}) == 1
        failed = await refused(served.jobs.SubmitJob(submission(2.0, request_id="r1")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        listed = await served.jobs.ListJobs(jobs_pb2.ListJobsRequest())
        assert [job.job_id for job in listed.jobs] == [jobs[0].job_id]


async def test_a_repeated_request_finds_its_job_after_its_audio_is_deleted(tmp_path: Path):
    recording = tmp_path / "a.raw"
    recording.write_bytes(pcm(1.0))
    source = audio_pb2.AudioSource(uri=recording.as_uri(), format=submission().audio.format)
    allowed = {"audio_uri_prefixes": [f"{tmp_path.as_uri()}/"]}
    async with serving_jobs(ScriptedEngine(), tmp_path / "data", max_concurrent_jobs=0, **allowed) as served:
        job = await submitted(served, audio=source, request_id="r1")
        recording.unlink()
        assert (await submitted(served, audio=source, request_id="r1")).job_id == job.job_id
        failed = await refused(submitted(served, audio=source, request_id="r2"))
    assert failed.reason == "AUDIO_NOT_FOUND"


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda r: r.ClearField("audio"), grpc.StatusCode.INVALID_ARGUMENT, "audio.content"),
        (lambda r: setattr(r.audio.format, "channel_count", 99), grpc.StatusCode.INVALID_ARGUMENT, "channel_count"),
        (lambda r: setattr(r.options, "language", "klingon!"), grpc.StatusCode.INVALID_ARGUMENT, "options.language"),
        (lambda r: setattr(r, "priority", 77), grpc.StatusCode.INVALID_ARGUMENT, "priority"),
        (lambda r: r.labels.update({"": "x"}), grpc.StatusCode.INVALID_ARGUMENT, "labels"),
        (lambda r: r.labels.update({"k": "x" * 129}), grpc.StatusCode.INVALID_ARGUMENT, "labels[k]"),
        (lambda r: r.labels.update({"k": "\0"}), grpc.StatusCode.INVALID_ARGUMENT, "labels[k]"),
        (lambda r: r.labels.update({str(i): "" for i in range(65)}), grpc.StatusCode.INVALID_ARGUMENT, "labels"),
        (lambda r: setattr(r, "request_id", "x" * 257), grpc.StatusCode.INVALID_ARGUMENT, "request_id"),
        (lambda r: setattr(r.options, "model", "unknown"), grpc.StatusCode.NOT_FOUND, ""),
        (lambda r: setattr(r.audio, "uri", "upload://nobody"), grpc.StatusCode.NOT_FOUND, ""),
        (lambda r: setattr(r.audio, "uri", "file:///etc/passwd"), grpc.StatusCode.INVALID_ARGUMENT, "audio.uri"),
    ],
)
async def test_a_bad_submission_is_refused(
    tmp_path: Path, change: Callable[[Any], None], code: grpc.StatusCode, field: str
):
    request = submission()
    change(request)
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        failed = await refused(served.jobs.SubmitJob(request))
        assert not (await served.jobs.ListJobs(jobs_pb2.ListJobsRequest())).jobs
    assert failed.code is code
    assert not field or field in failed.fields[0][0]


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.GetJob(jobs_pb2.GetJobRequest()),
        lambda jobs: jobs.CancelJob(jobs_pb2.CancelJobRequest()),
        lambda jobs: jobs.DeleteJob(jobs_pb2.DeleteJobRequest()),
        lambda jobs: jobs.WatchJob(jobs_pb2.WatchJobRequest()).read(),
        lambda jobs: jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="x", next_segment_index=-1)).read(),
        lambda jobs: jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1001)),
        lambda jobs: jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=-1)),
        lambda jobs: jobs.ListJobs(jobs_pb2.ListJobsRequest(page_token="?")),
        lambda jobs: jobs.ListJobs(jobs_pb2.ListJobsRequest(states=[0])),
    ],
    ids=["get", "cancel", "delete", "watch", "index", "size", "negative", "token", "state"],
)
async def test_a_bad_request_is_refused(tmp_path: Path, call: Callable[[Any], Any]):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        failed = await refused(call(served.jobs))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.fields


@pytest.mark.parametrize(
    ("settings", "metadata", "lists"),
    [
        pytest.param({}, (), True, id="on this machine, without keys"),
        pytest.param({}, (("x-forwarded-for", "198.51.100.1"),), False, id="from elsewhere, without keys"),
        pytest.param(KEYS, (), False, id="beside keys"),
    ],
)
async def test_without_a_key_jobs_are_found_by_their_ids_alone(
    tmp_path: Path, settings: Any, metadata: Any, lists: bool
):
    """Two connections from one address: nothing tells the caller of one from that of the other."""
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0, **settings) as served:
        request = submission(labels={"a": "b"})
        job = (await served.jobs.SubmitJob(request, metadata=metadata)).job
        assert len(bytes.fromhex(job.job_id)) == 16  # 128 bits
        async with grpc.aio.insecure_channel(served.target) as channel:
            other = jobs_pb2_grpc.JobsServiceStub(channel)
            for filters in ({}, {"labels": {"a": "b"}}, {"states": [PENDING]}):
                listed = await other.ListJobs(jobs_pb2.ListJobsRequest(**filters), metadata=metadata)
                assert [one.job_id for one in listed.jobs] == ([job.job_id] if lists else [])
                assert not listed.next_page_token
            by_id = {"job_id": job.job_id}
            assert (await other.GetJob(jobs_pb2.GetJobRequest(**by_id), metadata=metadata)).job == job
            await other.CancelJob(jobs_pb2.CancelJobRequest(**by_id), metadata=metadata)
            await other.DeleteJob(jobs_pb2.DeleteJobRequest(**by_id), metadata=metadata)


async def test_keys_list_their_own_jobs_and_an_admins_all(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0, **KEYS) as served:
        await submitted(served)
        await served.jobs.SubmitJob(submission(), metadata=AS_USER)
        for metadata, n_listed in ((AS_USER, 1), (AS_ADMIN, 2)):
            listed = await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=metadata)
            assert len(listed.jobs) == n_listed


async def test_a_list_leaves_transcripts_out_and_a_job_shows_its_options(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        options = transcription_pb2.TranscriptionOptions(language="de", word_timestamps=True)
        job = await submitted(served, options=options)
        run = await asyncio.to_thread(claimed, served, job)
        await asyncio.to_thread(served.runs.keep_chunk, run, chunk(0, "a", is_last=True))
        await asyncio.to_thread(served.runs.complete, run)
        (listed,) = (await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(states=[COMPLETED]))).jobs
        assert not listed.HasField("transcript")
        assert listed.options == options
        assert (await found(served, job.job_id)).transcript.text == "a"


async def test_a_failed_job_has_the_error_of_the_same_call(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        run = await asyncio.to_thread(claimed, served, await submitted(served))
        failure = Failure("Overloaded", "OVERLOADED", "Full.", 2.5)
        await asyncio.to_thread(served.runs.fail, run, failure)
        job = await found(served, run.job.job_id)
    assert (job.failure.code, job.failure.reason) == (code_pb2.UNAVAILABLE, "OVERLOADED")
    assert job.failure.retry_delay.ToTimedelta().total_seconds() == 2.5


async def test_a_python_client_submits_waits_and_deletes(tmp_path: Path):
    async with (
        serving_jobs(ScriptedEngine(lambda call: "text"), tmp_path) as served,
        AsyncClient(served.target) as client,
    ):
        recording = AUDIO / "en_short.flac"
        job = await client.jobs.submit(recording, labels={"a": "b"}, request_id="r1")
        assert (await client.jobs.submit(recording, labels={"a": "b"}, request_id="r1")).job_id == job.job_id
        done = await client.jobs.wait(job.job_id)
        assert (done.state, done.transcript.text) == (COMPLETED, "text")
        assert [one.job_id async for one in client.jobs.list(states=["completed"], labels={"a": "b"})] == [job.job_id]
        assert (await client.jobs.stats()).completed == 1
        await client.jobs.delete(job.job_id)
        assert [one async for one in client.jobs.list()] == []


async def test_the_audio_of_a_callers_jobs_is_bounded(tmp_path: Path):
    bounds = {"max_upload_bytes_per_caller": 80_000, "max_concurrent_jobs": 0}
    async with serving_jobs(ScriptedEngine(), tmp_path, **bounds) as served:
        first = await submitted(served, 1.0)
        await submitted(served, 1.0)
        failed = await refused(served.jobs.SubmitJob(submission(1.0)))
        await served.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=first.job_id))
        await submitted(served, 1.0)
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_QUOTA_EXCEEDED")
    assert failed.retry_after_s == 60.0


@pytest.mark.parametrize("keeps", [False, True])
async def test_the_audio_of_a_job_is_deleted_at_its_end_unless_the_operator_keeps_it(tmp_path: Path, keeps: bool):
    async with serving_jobs(ScriptedEngine(), tmp_path, keep_job_audio=keeps) as served:
        job = await submitted(served, options=transcription_pb2.TranscriptionOptions(output_formats=[SRT]))
        await watched(served, job.job_id)
        ended = await found(served, job.job_id)
    assert [one.format for one in ended.transcript.renditions] == [SRT]
    kept = [path.name for path in (tmp_path / "jobs" / "files" / "jobs" / job.job_id).iterdir()]
    assert sorted(kept) == (["audio", "chunks"] if keeps else ["chunks"])


async def test_users_get_statistics_of_their_own_jobs_and_admins_of_all(tmp_path: Path):
    secrets = {name: f"a-key-of-the-settings-for-{name}" for name in ("ann", "bob", "admin")}
    keys = {"auth_enabled": True, "api_keys": f"{secrets['ann']},{secrets['bob']}", "admin_keys": secrets["admin"]}
    sent = {name: (("authorization", f"Bearer {secret}"),) for name, secret in secrets.items()}
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0, **keys) as served:
        job = (await served.jobs.SubmitJob(submission(), metadata=sent["ann"])).job
        stats_of = {
            name: await served.jobs.GetQueueStats(jobs_pb2.GetQueueStatsRequest(), metadata=metadata)
            for name, metadata in sent.items()
        }
        deletion = jobs_pb2.DeleteJobRequest(job_id=job.job_id)
        for name in ("ann", "ann", "admin"):  # as if the first answer had been lost
            await served.jobs.DeleteJob(deletion, metadata=sent[name])
        failed = await refused(served.jobs.DeleteJob(deletion, metadata=sent["bob"]))
    assert {name: stats.total for name, stats in stats_of.items()} == {"ann": 1, "bob": 0, "admin": 1}
    assert not stats_of["bob"].HasField("oldest_pending_age")
    assert failed.reason == "JOB_NOT_FOUND"
