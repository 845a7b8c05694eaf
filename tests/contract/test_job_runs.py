"""Runs of jobs and their guarded writes, over each database."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.contract.conftest import FAULT, Stores, chunk, claimed
from typeless_grpc.errors import NotFound
from typeless_grpc.jobs.job import MAX_CRASHES, Priority, State
from typeless_grpc.jobs.store import RunLost


def test_a_cancelled_run_can_write_nothing_any_more(stores: Stores):
    run = claimed(stores, stores.submit())
    stores.runs.keep_chunk(run, chunk(0, "hello"))
    stores.jobs.cancel(run.job.job_id, None)
    assert stores.runs.lost([run]) == {run.run_id}
    for write in (
        lambda: stores.runs.keep_chunk(run, chunk(1)),
        lambda: stores.runs.complete(run),
        lambda: stores.runs.fail(run, FAULT),
        lambda: stores.runs.retry(run, FAULT, 0),
        lambda: stores.runs.hand_back(run),
    ):
        with pytest.raises(RunLost):
            write()
    job = stores.jobs.get(run.job.job_id, None)
    assert job.state is State.CANCELLED
    assert stores.jobs.transcript(job).segments == ()


@pytest.mark.parametrize("end", ["cancelled", "deleted"])
def test_a_chunk_that_comes_after_the_end_of_its_job_leaves_no_file(stores: Stores, end: str):
    run = claimed(stores, stores.submit())
    stores.jobs.cancel(run.job.job_id, None)
    if end == "deleted":
        stores.jobs.delete(run.job.job_id, None)
    with pytest.raises(RunLost):
        stores.runs.keep_chunk(run, chunk(0, "private"))
    assert stores.files.names(f"jobs/{run.job.job_id}/chunks") == []
    assert [name for name, _ in stores.files.names("jobs")] == ([run.job.job_id] if end == "cancelled" else [])


def test_a_run_moves_the_job_to_its_end(stores: Stores):
    job = stores.submit()
    run = claimed(stores, job)
    began = stores.jobs.get(job.job_id, None)
    assert (began.state, began.attempt) == (State.PROCESSING, 1)
    assert began.start_s is not None
    assert stores.runs.lost([run]) == set()
    stores.runs.keep_chunk(run, chunk(0, "one", "two", progress=0.4, processing_s=0.5, queue_s=0.1, n_windows=2))
    between = stores.jobs.get(job.job_id, None)
    assert (between.progress, between.n_chunks, between.n_segments, between.position) == (0.4, 1, 2, 16_000)
    assert between.audio_s is None
    stores.runs.keep_chunk(
        run, chunk(1, "three", is_last=True, progress=1.0, processing_s=0.5, queue_s=0.1, n_windows=1)
    )
    stores.runs.complete(run)
    ended = stores.jobs.get(job.job_id, None)
    assert (ended.state, ended.progress, ended.audio_s) == (State.COMPLETED, 1.0, 2.0)
    assert (ended.processing_s, ended.n_windows) == (1.0, 3)
    assert ended.end_s is not None
    assert ended.expire_s == pytest.approx(ended.end_s + 86_400, abs=1)
    transcript = stores.jobs.transcript(ended)
    assert transcript.text == "one two three"
    assert (transcript.audio_s, transcript.model, transcript.language) == (2.0, "tiny", "en")


def test_every_change_has_a_version_of_its_own(stores: Stores):
    job = stores.submit()
    seen = [stores.jobs.versions([job.job_id])[job.job_id]]
    run = claimed(stores, job)
    for change in (
        lambda: None,
        lambda: stores.runs.keep_chunk(run, chunk(0)),
        lambda: stores.runs.keep_chunk(run, chunk(1, is_last=True)),
        lambda: stores.runs.complete(run),
    ):
        change()
        seen.append(stores.jobs.versions([job.job_id, "nobody"])[job.job_id])
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("first", "expected"), [(0, ["a", "b", "c", "d"]), (1, ["b", "c", "d"]), (2, ["c", "d"]), (4, []), (9, [])]
)
def test_segments_are_read_from_any_index_on(stores: Stores, first: int, expected: list[str]):
    run = claimed(stores, stores.submit())
    for index, texts in enumerate([("a", "b"), (), ("c", "d")]):
        stores.runs.keep_chunk(run, chunk(index, *texts))
    job = stores.jobs.get(run.job.job_id, None)
    assert [segment.text for segment in stores.jobs.segments(job, first)] == expected


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_that_ends_while_its_chunks_are_read_is_still_there_unless_deleted(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, end: str
):
    run = claimed(stores, stores.submit())
    stores.runs.keep_chunk(run, chunk(0, "a", "b"))
    job = stores.jobs.get(run.job.job_id, None)
    read = stores.files.read

    def read_late(paths: Sequence[str]) -> list[bytes]:
        stores.jobs.cancel(job.job_id, None)
        if end == "delete":
            stores.jobs.delete(job.job_id, None)
        return read(paths)

    monkeypatch.setattr(stores.files, "read", read_late)
    if end == "cancel":
        assert stores.jobs.segments(job, 0) == []
    else:
        with pytest.raises(NotFound):
            stores.jobs.segments(job, 0)


def test_progress_never_falls(stores: Stores):
    run = claimed(stores, stores.submit())
    stores.runs.keep_chunk(run, chunk(0, progress=0.6))
    stores.runs.keep_chunk(run, chunk(1, progress=0.5))
    assert stores.jobs.get(run.job.job_id, None).progress == 0.6


def test_a_chunk_is_kept_once(stores: Stores):
    run = claimed(stores, stores.submit())
    assert stores.runs.kept_chunk(run, 0) is None
    stores.runs.keep_chunk(run, chunk(0, "one"))
    with pytest.raises(RunLost):
        stores.runs.keep_chunk(run, chunk(0, "again"))
    second = claimed(stores, run.job, "w2")
    assert (second.job.n_chunks, second.job.position) == (1, 16_000)
    assert stores.runs.kept_chunk(second, 0) is False
    assert stores.runs.kept_chunk(second, 1) is None


def test_a_frozen_run_cannot_overwrite_its_successor(stores: Stores):
    job = stores.submit()
    frozen = claimed(stores, job, "w1")
    stores.runs.keep_chunk(frozen, chunk(0, "kept"))
    successor = claimed(stores, job, "w2")
    with pytest.raises(RunLost):
        stores.runs.keep_chunk(frozen, chunk(1, "late"))
    assert stores.runs.lost([frozen, successor]) == {frozen.run_id}
    stores.runs.keep_chunk(successor, chunk(1, "in time", is_last=True))
    with pytest.raises(RunLost):
        stores.runs.complete(frozen)
    stores.runs.complete(successor)
    ended = stores.jobs.get(job.job_id, None)
    assert stores.jobs.transcript(ended).text == "kept in time"
    assert ended.attempt == 2


def test_a_failed_job_has_its_failure(stores: Stores):
    run = claimed(stores, stores.submit())
    stores.runs.fail(run, FAULT)
    job = stores.jobs.get(run.job.job_id, None)
    assert (job.state, job.failure) == (State.FAILED, FAULT)
    assert job.expire_s is not None


def test_a_job_that_is_retried_is_pending_and_queued_again(stores: Stores):
    job = stores.submit(caller="key:1", priority=Priority.HIGH)
    run = claimed(stores, job)
    stores.runs.retry(run, FAULT, 7.5)
    waiting = stores.jobs.get(job.job_id, None)
    assert waiting.state is State.PENDING
    assert waiting.failure is None
    last = stores.queue.queued[-1]
    assert (last.job_id, last.delay_s, last.caller, last.priority) == (job.job_id, 7.5, "key:1", 1)
    assert last.workflow_id != stores.queue.queued[0].workflow_id
    again = claimed(stores, job)
    assert (again.n_failures, again.job.attempt) == (1, 2)
    stores.runs.keep_chunk(again, chunk(0))
    stores.runs.retry(again, FAULT, 1)
    assert claimed(stores, job).n_failures == 1  # the chunk that was kept in between forgave the first


def test_a_job_that_was_handed_back_did_not_crash(stores: Stores):
    job = stores.submit()
    for _ in range(MAX_CRASHES + 1):
        stores.runs.hand_back(claimed(stores, job))
        assert not stores.runs.is_quarantined(job.job_id)
    assert stores.jobs.get(job.job_id, None).state is State.PENDING


def test_a_job_that_crashes_its_runs_fails(stores: Stores):
    job = stores.submit()
    for attempt in range(1, MAX_CRASHES + 1):
        assert claimed(stores, job).job.attempt == attempt
        assert stores.runs.is_quarantined(job.job_id)
    assert stores.runs.claim(job.job_id, "w1") is None
    failed = stores.jobs.get(job.job_id, None)
    assert failed.state is State.FAILED
    assert failed.failure is not None
    assert failed.failure.reason == "JOB_CRASHED"
    assert failed.attempt == MAX_CRASHES


def test_crashes_with_progress_in_between_are_forgiven(stores: Stores):
    job = stores.submit()
    for index in range(2 * MAX_CRASHES):
        stores.runs.keep_chunk(claimed(stores, job), chunk(index))
    assert stores.jobs.get(job.job_id, None).state is State.PROCESSING
