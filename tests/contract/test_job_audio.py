"""The audio of jobs: what counts for its owner, and when it is deleted, over each database."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.contract.conftest import FAULT, Stores, claimed, done, new_job
from typeless_grpc.errors import NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.jobs.job import MAX_CRASHES, Job, State
from typeless_grpc.jobs.store import JobQuery
from typeless_grpc.stores.database import Database, audio_reservations, uploads
from typeless_grpc.stores.files import Files


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
