"""What every store of jobs does, over each database."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.contract.conftest import Stores, chunk, new_job
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Mode,
    PostProcessing,
    Script,
    Task,
    VoiceActivityOptions,
)
from typeless_grpc.errors import AlreadyExists, InvalidInput, NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.jobs.job import MAX_CRASHES, Failure, Job, Priority, State
from typeless_grpc.jobs.store import JobQuery, Run, RunLost
from typeless_grpc.speech.transcript import OutputFormat
from typeless_grpc.stores import steady
from typeless_grpc.stores.database import Database, audio_reservations, uploads
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.jobs import filters_digest

FAULT = Failure("EngineFailed", "ENGINE_FAILED", "The engine failed.", 1.0)


def claimed(stores: Stores, job: Job, worker: str = "w1") -> Run:
    run = stores.runs.claim(job.job_id, worker)
    assert run is not None
    return run


def done(stores: Stores, job: Job) -> Job:
    run = claimed(stores, job)
    stores.runs.keep_chunk(run, chunk(0, "hello", is_last=True, progress=1.0))
    stores.runs.complete(run)
    return stores.jobs.get(job.job_id, None)


def test_a_job_comes_back_as_it_was_submitted(stores: Stores):
    options = DecodeOptions(
        model="tiny",
        language="de",
        task=Task.TRANSLATE,
        prompt="Dr Żelazny \0 日本",
        hotwords=("Korventa",),
        word_timestamps=True,
        beam_size=3,
        temperatures=(0.0, 0.4),
        voice_activity=VoiceActivityOptions(threshold=0.25, end_silence_s=1.0),
        allowed_languages=("de", "en"),
        script=Script.TRADITIONAL,
        chunking=Chunking.VAD,
        separate_channels=True,
        post_processing=PostProcessing(Mode.STANDARD, {"a": "b"}, mask_profanity=True),
        output_formats=(OutputFormat.SRT, OutputFormat.JSON),
    )
    submitted = stores.submit(
        options=options, options_message=b"\x00\xff", priority=Priority.HIGH, labels={"a": "b", "日": "'\"%"}
    )
    job = stores.jobs.get(submitted.job_id, "ann")
    assert job == submitted
    assert (job.state, job.progress, job.attempt) == (State.PENDING, 0.0, 0)
    assert job.options == options
    assert (job.options_message, job.priority, job.labels) == (b"\x00\xff", Priority.HIGH, {"a": "b", "日": "'\"%"})
    assert job.create_s > 0
    assert (job.start_s, job.end_s, job.expire_s, job.failure) == (None, None, None, None)


def test_the_audio_is_kept_before_the_submission_returns(stores: Stores):
    job = stores.submit(content=b"RIFF....")
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"RIFF...."


def test_a_job_is_in_the_queue_once_it_is_filed(stores: Stores):
    job = stores.submit(caller="key:1", priority=Priority.LOW)
    assert [(one.job_id, one.caller, one.priority) for one in stores.queue.queued] == [(job.job_id, "key:1", 3)]


def test_one_request_id_makes_one_job(stores: Stores):
    first = stores.submit(request_id="r1", fingerprint="x")
    again = stores.submit(request_id="r1", fingerprint="x")
    assert again.job_id == first.job_id
    assert len(stores.queue.queued) == 1


def test_one_request_id_for_two_requests_is_refused(stores: Stores):
    stores.submit(request_id="r1", fingerprint="x")
    with pytest.raises(AlreadyExists) as caught:
        stores.submit(request_id="r1", fingerprint="y")
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_owners_do_not_share_request_ids(stores: Stores):
    first = stores.submit(owner="ann", request_id="r1", fingerprint="x")
    second = stores.submit(owner="bob", request_id="r1", fingerprint="y")
    assert first.job_id != second.job_id


def test_submissions_of_one_request_at_the_same_instant_make_one_job(stores: Stores):
    n_at_once = 8
    together = threading.Barrier(n_at_once)

    def submit(_: int) -> str:
        together.wait()
        return stores.submit(request_id="r1", fingerprint="x").job_id

    with ThreadPoolExecutor(n_at_once) as pool:
        made = set(pool.map(submit, range(n_at_once)))
    assert len(made) == 1
    assert [job.job_id for job in stores.jobs.page(JobQuery(None)).jobs] == list(made)
    assert [name for name, _ in stores.files.names("jobs")] == list(made)


def test_a_caller_has_a_bounded_number_of_pending_jobs(database: Database, files: Files):
    stores = Stores.over(database, files, max_pending=2)
    first = stores.submit(caller="ann")
    stores.submit(caller="ann")
    with pytest.raises(RateLimited) as caught:
        stores.submit(caller="ann")
    assert caught.value.reason == "TOO_MANY_PENDING_JOBS"
    assert caught.value.retryable
    stores.submit(caller="bob")
    stores.jobs.cancel(first.job_id, None)
    stores.submit(caller="ann")


@pytest.mark.parametrize("call", ["get", "cancel", "delete"])
def test_another_owners_job_is_not_found(stores: Stores, call: str):
    job = stores.submit(owner="ann")
    with pytest.raises(NotFound) as caught:
        getattr(stores.jobs, call)(job.job_id, "bob")
    assert caught.value.reason == "JOB_NOT_FOUND"
    getattr(stores.jobs, call)(job.job_id, None)


def test_pages_are_newest_first_and_complete(stores: Stores):
    made = [stores.submit(owner="ann" if i % 2 else "bob").job_id for i in range(7)]
    listed, token = [], ""
    while True:
        page = stores.jobs.page(JobQuery(None, page_size=3, page_token=token))
        listed += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]
    assert [job.job_id for job in stores.jobs.page(JobQuery("bob")).jobs] == made[::-1][0::2]


def test_pages_continue_where_they_stopped_while_jobs_come_and_go(stores: Stores):
    made = [stores.submit().job_id for _ in range(4)]
    page = stores.jobs.page(JobQuery(None, page_size=2))
    stores.submit()
    stores.jobs.delete(made[2], None)
    rest = stores.jobs.page(JobQuery(None, page_size=2, page_token=page.next_page_token))
    assert [job.job_id for job in rest.jobs] == [made[1], made[0]]


def forged(token: str) -> str:
    filters = filters_digest(JobQuery(None))
    return base64.urlsafe_b64encode(token.replace("FILTERS", filters).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "é",
        *map(
            forged,
            [
                "[]",
                "null",
                "[1,2]",
                f'[{"9" * 400},"a","f"]',
                '[NaN,"a","FILTERS"]',
                '[1,"a\\u0000","FILTERS"]',
                '[1,"\\ud800","FILTERS"]',
                f"{'[' * 200_000}1{']' * 200_000}",
            ],
        ),
    ],
    ids=["short", "letter", "empty", "null", "two", "digits", "no number", "nul", "half a letter", "nested"],
)
def test_an_unknown_page_token_is_refused(stores: Stores, token: str):
    with pytest.raises(InvalidInput) as caught:
        stores.jobs.page(JobQuery(None, page_token=token))
    assert caught.value.violations[0].field == "page_token"


def test_a_page_token_belongs_to_its_filters(stores: Stores):
    for _ in range(2):
        stores.submit()
    token = stores.jobs.page(JobQuery("ann", page_size=1)).next_page_token
    with pytest.raises(InvalidInput):
        stores.jobs.page(JobQuery("ann", page_size=1, page_token=token, states=[State.PENDING]))


def test_jobs_are_listed_by_state_and_labels(stores: Stores):
    plain, labelled = stores.submit(), stores.submit(labels={"team": "a", 'k"\\': "100%_'"})
    ended = done(stores, stores.submit(labels={"team": "a"}))

    def listed(**filters: object) -> list[str]:
        return [job.job_id for job in stores.jobs.page(JobQuery("ann", **filters)).jobs]  # type: ignore[arg-type]

    assert listed(states=[State.PENDING]) == [labelled.job_id, plain.job_id]
    assert listed(states=[State.COMPLETED, State.FAILED]) == [ended.job_id]
    assert listed(labels={"team": "a"}) == [ended.job_id, labelled.job_id]
    assert listed(labels={"team": "a", 'k"\\': "100%_'"}) == [labelled.job_id]
    assert listed(labels={"team": "b"}) == []
    assert listed(states=[State.PENDING], labels={"team": "a"}) == [labelled.job_id]


def test_a_pending_job_is_cancelled_at_once_and_for_good(stores: Stores):
    job = stores.submit()
    cancelled = stores.jobs.cancel(job.job_id, "ann")
    assert cancelled.state is State.CANCELLED
    assert cancelled.end_s is not None
    assert cancelled.expire_s is not None
    assert stores.queue.cancelled == [job.job_id]
    assert stores.runs.claim(job.job_id, "w1") is None


def test_cancelling_a_job_that_has_ended_changes_nothing(stores: Stores):
    job = done(stores, stores.submit())
    assert stores.jobs.cancel(job.job_id, "ann") == job


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


def test_a_running_job_is_not_deleted(stores: Stores):
    run = claimed(stores, stores.submit())
    with pytest.raises(WrongState) as caught:
        stores.jobs.delete(run.job.job_id, None)
    assert caught.value.reason == "JOB_RUNNING"


def test_a_repeated_deletion_succeeds_for_its_owner_alone(stores: Stores):
    job = stores.submit(owner="ann")
    for owner in ("ann", "ann", None):
        stores.jobs.delete(job.job_id, owner)
    for job_id, owner in ((job.job_id, "bob"), ("nobody", "ann"), ("nobody", None)):
        with pytest.raises(NotFound):
            stores.jobs.delete(job_id, owner)


def test_a_deletion_whose_answer_was_lost_can_be_repeated(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    job = stores.submit(owner="ann")
    with monkeypatch.context() as patched:
        patched.setattr(stores.queue, "forget", _cut_off)
        with pytest.raises(ConnectionError):
            stores.jobs.delete(job.job_id, "ann")
    stores.jobs.delete(job.job_id, "ann")


def _cut_off(_: Sequence[str]) -> None:
    raise ConnectionError


def test_a_deletion_is_forgotten_after_a_while(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("typeless_grpc.stores.jobs.DELETION_S", -1.0)
    job = stores.submit(owner="ann")
    stores.jobs.delete(job.job_id, "ann")
    stores.maintenance.delete_expired()
    with pytest.raises(NotFound):
        stores.jobs.delete(job.job_id, "ann")


def test_deleting_a_job_deletes_all_its_data(stores: Stores):
    job = done(stores, stores.submit(request_id="r1", fingerprint="x"))
    stores.jobs.delete(job.job_id, "ann")
    with pytest.raises(NotFound):
        stores.jobs.get(job.job_id, "ann")
    assert stores.files.names("jobs") == []
    assert stores.queue.forgotten == [job.job_id]
    assert stores.jobs.versions([job.job_id]) == {}
    assert stores.submit(request_id="r1", fingerprint="y").job_id != job.job_id


def test_jobs_expire_after_their_end(database: Database, files: Files):
    stores = Stores.over(database, files, ttl_s=-1.0)
    pending, ended = stores.submit(), stores.submit()
    run = claimed(stores, ended)
    stores.runs.complete(run)
    with pytest.raises(NotFound):
        stores.jobs.get(ended.job_id, None)
    assert [job.job_id for job in stores.jobs.page(JobQuery(None)).jobs] == [pending.job_id]
    assert stores.maintenance.delete_expired() == 1
    assert stores.maintenance.delete_expired() == 0
    assert [name for name, _ in files.names("jobs")] == [pending.job_id]
    assert stores.jobs.get(pending.job_id, None).state is State.PENDING


def test_stats_count_every_job_once(stores: Stores):
    assert stores.jobs.stats().oldest_pending_age_s is None
    stores.submit(owner="ann")
    stores.submit(owner="bob")
    done(stores, stores.submit())
    claimed(stores, stores.submit())
    stores.maintenance.heartbeat("w1", 3)
    stores.maintenance.heartbeat("w1", 3)
    stores.maintenance.heartbeat("w2", 5)
    stats = stores.jobs.stats()
    assert stats.counts == {State.PENDING: 2, State.COMPLETED: 1, State.PROCESSING: 1}
    assert (stats.n_workers, stats.max_concurrent_jobs) == (2, 8)
    assert stats.oldest_pending_age_s is not None
    assert 0 <= stats.oldest_pending_age_s < 60
    stores.maintenance.sign_off(["w2"])
    assert stores.jobs.stats().n_workers == 1


def test_stats_are_of_one_owner_or_of_all(stores: Stores):
    stores.submit(owner="ann")
    done(stores, stores.submit(owner="bob"))
    stores.maintenance.heartbeat("w1", 3)
    assert stores.jobs.stats("ann").counts == {State.PENDING: 1}
    bob, nobody, everyone = (stores.jobs.stats(owner) for owner in ("bob", "nobody", None))
    assert (bob.counts, bob.oldest_pending_age_s) == ({State.COMPLETED: 1}, None)
    assert (nobody.counts, nobody.n_workers, nobody.max_concurrent_jobs) == ({}, 1, 3)
    assert everyone.counts == {State.PENDING: 1, State.COMPLETED: 1}


def test_a_silent_worker_is_not_counted(database: Database, files: Files):
    stores = Stores.over(database, files, worker_timeout_s=0.0)
    stores.maintenance.heartbeat("w1", 3)
    assert stores.jobs.stats().n_workers == 0


def test_every_heartbeat_is_another_one(stores: Stores):
    seen = []
    for _ in range(3):
        stores.maintenance.heartbeat("w1", 3)
        seen.append(stores.maintenance.workers()["w1"])
        time.sleep(0.01)  # SQLite's clock counts milliseconds; heartbeats are seconds apart
    assert len(set(seen)) == 3


@pytest.mark.parametrize("leap_s", [86_401.0, 3e7])
def test_a_step_of_the_databases_clock_ends_nothing_early(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, leap_s: float
):
    job = done(stores, stores.submit())
    upload = stores.uploads.create("ann", "")
    now_s = stores.database.now_s
    monkeypatch.setattr(stores.database, "now_s", lambda: now_s() + leap_s)
    monkeypatch.setattr(steady, "READ_S", 0.0)
    for _ in range(5):
        assert (stores.maintenance.delete_expired(), stores.uploads.delete_expired()) == (0, 0)
        assert stores.jobs.get(job.job_id, "ann") == job
        assert stores.uploads.get(upload.upload_id, "ann") == upload
    later = done(stores, stores.submit())
    assert later.expire_s == pytest.approx(job.expire_s, abs=60)


@pytest.mark.parametrize("as_file", [False, True], ids=["sent along", "fetched"])
def test_audio_of_jobs_counts_with_the_uploads_of_its_owner(database: Database, files: Files, as_file: bool):
    stores = Stores.over(database, files, uploads={"max_owner_bytes": 10}, max_owner_bytes=10)

    def submit(audio: bytes, **values: Any) -> Job:
        return stores.submit(content=io.BytesIO(audio) if as_file else audio, **values)

    job = submit(b"12345")
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"123"])
    for more in (lambda: submit(b"123"), lambda: stores.uploads.append(upload, [b"456"])):
        with pytest.raises(RateLimited) as caught:
            more()
        assert (caught.value.reason, caught.value.retryable) == ("UPLOAD_QUOTA_EXCEEDED", True)
    with stores.jobs.reserve("ann") as reserved, pytest.raises(RateLimited):
        reserved.grow_to(3)
    with stores.jobs.reserve("ann") as reserved:
        reserved.grow_to(2)
    assert [name for name, _ in files.names("jobs")] == [job.job_id]
    submit(b"1234567890", owner="bob")
    done(stores, job)
    submit(b"1234567")


def reserve(stores: Stores, n_bytes: int) -> None:
    with stores.jobs.reserve("ann") as reserved:
        reserved.grow_to(n_bytes)


def test_audio_that_is_being_fetched_counts_until_its_fetch_ends(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"max_owner_bytes": 10}, max_owner_bytes=10)
    upload = stores.uploads.create("ann", "")
    with stores.jobs.reserve("ann") as reserved:
        for n_bytes in (4, 8, 6):
            reserved.grow_to(n_bytes)
        for more in (
            lambda: stores.submit(content=b"123"),
            lambda: stores.uploads.append(upload, [b"123"]),
            lambda: reserve(stores, 3),
            lambda: reserved.grow_to(11),
        ):
            with pytest.raises(RateLimited):
                more()
        stores.submit(content=b"123", owner="bob")
    stores.submit(content=b"1234567890")


def test_audio_that_was_fetched_counts_once_as_that_of_its_job(database: Database, files: Files):
    stores = Stores.over(database, files, max_owner_bytes=10)
    with stores.jobs.reserve("ann") as reserved:
        reserved.grow_to(10)
        job = stores.jobs.submit(new_job(), io.BytesIO(b"12345"), reserved)
        with pytest.raises(RateLimited):
            reserve(stores, 6)
        reserve(stores, 5)
    with pytest.raises(RateLimited):
        reserve(stores, 6)
    done(stores, job)
    reserve(stores, 10)


def test_a_reservation_whose_server_crashed_expires(database: Database, files: Files):
    stores = Stores.over(database, files, max_owner_bytes=10, fetch_timeout_s=-1e6)
    with stores.jobs.reserve("ann") as reserved:
        reserved.grow_to(10)
        reserve(stores, 10)
        stores.maintenance.delete_expired()
        with database.reading() as connection:
            assert not connection.execute(sa.select(audio_reservations)).all()


def test_fetches_at_the_same_instant_do_not_take_the_same_room(database: Database, files: Files):
    stores = Stores.over(database, files, max_owner_bytes=10)
    n_at_once = 6
    together, afterwards = threading.Barrier(n_at_once), threading.Barrier(n_at_once)

    def fetch(_: int) -> bool:
        with stores.jobs.reserve("ann") as reserved:
            together.wait()
            try:
                reserved.grow_to(4)
            except RateLimited:
                return False
            finally:
                afterwards.wait()
            return True

    with ThreadPoolExecutor(n_at_once) as pool:
        assert sum(pool.map(fetch, range(n_at_once))) == 2


def test_submissions_at_the_same_instant_do_not_take_the_same_room(database: Database, files: Files):
    stores = Stores.over(database, files, max_owner_bytes=10)
    n_at_once = 8
    together = threading.Barrier(n_at_once)

    def submit(_: int) -> bool:
        together.wait()
        try:
            return bool(stores.submit(content=b"1234"))
        except RateLimited:
            return False

    with ThreadPoolExecutor(n_at_once) as pool:
        assert sum(pool.map(submit, range(n_at_once))) == 2
    assert len(stores.files.names("jobs")) == 2


End = Callable[[Stores, Job], object]

ENDS: dict[str, End] = {
    "completed": done,
    "failed": lambda stores, job: stores.runs.fail(claimed(stores, job), FAULT),
    "cancelled": lambda stores, job: stores.jobs.cancel(job.job_id, None),
    "cancelled while it ran": lambda stores, job: claimed(stores, job) and stores.jobs.cancel(job.job_id, None),
    "crashed": lambda stores, job: [stores.runs.claim(job.job_id, "w1") for _ in range(MAX_CRASHES + 1)],
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_the_audio_of_a_job_is_deleted_at_its_end_and_its_result_stays(
    stores: Stores, end: Callable[[Stores, Job], object]
):
    job = stores.submit()
    end(stores, job)
    ended = stores.jobs.get(job.job_id, None)
    assert ended.state.is_final
    assert "audio" not in [name for name, _ in stores.files.names(f"jobs/{job.job_id}")]
    with pytest.raises(NotFound):
        stores.runs.open_audio(job)
    assert stores.jobs.transcript(ended).text == ("hello" if ended.state is State.COMPLETED else "")


def test_the_audio_of_a_job_that_is_retried_stays(stores: Stores):
    job = stores.submit()
    stores.runs.retry(claimed(stores, job), FAULT, 0)
    stores.runs.hand_back(claimed(stores, job))
    stores.maintenance.drop_audio()
    stores.runs.open_audio(job).close()


def test_an_operator_may_keep_the_audio_of_jobs(database: Database, files: Files):
    stores = Stores.over(database, files, max_owner_bytes=10, keep_audio=True)
    job = done(stores, stores.submit(content=b"12345"))
    assert stores.maintenance.drop_audio() == 0
    stores.runs.open_audio(job).close()
    with pytest.raises(RateLimited):
        stores.submit(content=b"123456")
    stores.jobs.delete(job.job_id, "ann")
    stores.submit(content=b"123456")


def test_audio_that_was_left_behind_at_the_end_of_its_job_is_deleted(
    database: Database, files: Files, monkeypatch: pytest.MonkeyPatch
):
    stores = Stores.over(database, files, max_owner_bytes=10)
    job = stores.submit(content=b"12345")
    with monkeypatch.context() as patched:
        patched.setattr(files, "delete_tree", _unavailable)
        done(stores, job)
    with pytest.raises(RateLimited):
        stores.submit(content=b"123456")
    assert [stores.maintenance.drop_audio() for _ in range(2)] == [1, 0]
    stores.submit(content=b"123456")


def _unavailable(path: str) -> None:
    raise SourceUnavailable("down", reason="STORE_UNAVAILABLE", retry_after_s=1.0)


def test_new_audio_is_refused_before_the_disk_is_full_and_jobs_continue(database: Database, tmp_path: Path):
    path = str(tmp_path / "storage")
    before = Stores.over(database, Files(path))
    job = before.submit()
    upload = before.uploads.create("ann", "")
    stores = Stores.over(database, Files(path, min_free_percent=100.0))
    for more in (
        stores.submit,
        lambda: stores.uploads.append(upload, [b"abc"]),
        lambda: reserve(stores, 1),
    ):
        with pytest.raises(SourceUnavailable) as caught:
            more()
        assert (caught.value.reason, caught.value.retry_after_s) == ("STORAGE_FULL", 30.0)
    assert done(stores, job).state is State.COMPLETED


def test_files_of_an_interrupted_submission_are_quarantined(stores: Stores):
    job = stores.submit()
    stores.files.write(f"jobs/{'0' * 32}/audio", b"x")
    assert stores.maintenance.delete_orphans(before_s=0.0) == 0
    assert stores.maintenance.delete_orphans(before_s=4e9) == 1
    assert [name for name, _ in stores.files.names("jobs")] == [job.job_id]


def test_a_job_whose_commit_got_no_answer_keeps_its_audio(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    writing = stores.database.writing

    @contextmanager
    def unanswered() -> Iterator[sa.Connection]:
        with writing() as connection:
            yield connection
        raise SourceUnavailable("down", reason="STORE_UNAVAILABLE", retry_after_s=1.0)

    with monkeypatch.context() as patched:
        patched.setattr(stores.database, "writing", unanswered)
        with pytest.raises(SourceUnavailable):
            stores.submit(content=b"RIFF....", request_id="r1")
    job = stores.submit(content=b"RIFF....", request_id="r1")
    assert stores.jobs.page(JobQuery(None)).jobs == [job]
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"RIFF...."


def test_a_submission_that_was_refused_leaves_no_audio(stores: Stores):
    stores.submit(request_id="r1", fingerprint="x")
    (kept,) = stores.files.names("jobs")
    with pytest.raises(NotFound):
        stores.submit(uri="upload://nobody")
    assert stores.files.names("jobs") == [kept]


def test_a_job_needs_a_complete_upload(stores: Stores):
    with pytest.raises(NotFound) as caught:
        stores.jobs.submit(new_job(uri="upload://nobody"), None)
    assert caught.value.reason == "UPLOAD_NOT_FOUND"
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    with pytest.raises(WrongState) as unfinished:
        stores.jobs.submit(new_job(uri=upload.uri), None)
    assert unfinished.value.reason == "UPLOAD_INCOMPLETE"
    stores.uploads.complete(upload)
    with pytest.raises(NotFound):
        stores.jobs.submit(new_job(uri=upload.uri, uploads_of="bob"), None)
    job = stores.jobs.submit(new_job(uri=upload.uri), None)
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"abc"
    assert stores.jobs.page(JobQuery(None)).jobs == [job]


def test_an_ended_job_keeps_no_upload_and_is_still_found_by_it(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"ttl_s": 0.0})
    upload = stores.uploads.complete(stores.uploads.create("ann", ""), b"\1" * 32)
    with database.writing() as connection:  # as if it had been completed a moment ago
        connection.execute(sa.update(uploads).values(expire_s=4e9))
    job = stores.jobs.submit(new_job(uri=upload.uri), None)
    with database.writing() as connection:
        connection.execute(sa.update(uploads).values(expire_s=0.0))
    assert stores.uploads.delete_expired() == 0
    done(stores, job)
    assert stores.uploads.delete_expired() == 1
    assert stores.uploads.sha256(upload.upload_id, "ann") == b"\1" * 32
    assert stores.uploads.sha256(upload.upload_id, "bob") == b""
    stores.jobs.delete(job.job_id, "ann")
    assert stores.uploads.sha256(upload.upload_id, None) == b""


def test_an_upload_lives_as_long_as_the_jobs_that_use_it(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"ttl_s": 60.0})
    upload = stores.uploads.complete(stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"]))
    first = stores.jobs.submit(new_job(uri=upload.uri), None)
    second = stores.jobs.submit(new_job(uri=upload.uri), None)
    stores.jobs.delete(first.job_id, "ann")
    assert stores.uploads.delete_expired() == 0
    assert stores.uploads.get(upload.upload_id, "ann").is_complete
    stores.jobs.delete(second.job_id, "ann")
    with pytest.raises(NotFound):
        stores.uploads.get(upload.upload_id, "ann")
    assert stores.uploads.delete_expired() == 1
    assert files.names("uploads") == []
