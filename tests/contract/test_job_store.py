"""Submitting, listing, cancelling, deleting and counting jobs, over each database."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.contract.conftest import FAULT, Stores, claimed, done
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Mode,
    PostProcessing,
    Script,
    Task,
    VoiceActivityOptions,
)
from typeless_grpc.errors import AlreadyExists, InvalidInput, NotFound, RateLimited, WrongState
from typeless_grpc.jobs.job import Priority, State
from typeless_grpc.jobs.store import JobQuery
from typeless_grpc.speech.transcript import OutputFormat
from typeless_grpc.stores import steady
from typeless_grpc.stores.database import Database, job_traces
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.jobs import filters_digest


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


def test_the_trace_of_a_submission_reaches_its_runs_and_is_deleted_with_the_job(stores: Stores, database: Database):
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=b"}
    job, without = stores.submit(trace=trace), stores.submit()
    assert claimed(stores, without).trace == {}
    run = claimed(stores, job)
    assert run.trace == trace
    assert 0 <= run.waited_s < 60
    stores.runs.retry(run, FAULT, 0)
    again = claimed(stores, job)
    assert again.trace == trace
    stores.runs.complete(again)
    stores.jobs.delete(job.job_id, "ann")
    with database.reading() as connection:
        assert connection.execute(sa.select(job_traces)).all() == []


def test_a_database_of_an_earlier_version_gets_the_table_of_traces(database: Database):
    with database.writing() as connection:
        job_traces.drop(connection)
    database.create_tables()
    with database.reading() as connection:
        assert connection.execute(sa.select(job_traces)).all() == []


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
