"""Files that belong to nothing are put aside, over any storage; those of a submission that is under way are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.clock import FakeClock
from typeless_grpc.stores.database import Database, jobs, sqlite_url
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.janitor import Janitor
from typeless_grpc.stores.orphans import QUARANTINE_S, Orphans

LATER_S = 4e9
DELETED = "0" * 32


@pytest.fixture
def stores(database: Database, tmp_path: Path) -> Stores:
    """Over a storage that does not say how old a directory is, as object storage does not."""
    return Stores.over(database, Files(f"memory://{tmp_path}"))


def names(stores: Stores, directory: str) -> list[str]:
    return [name for name, _ in stores.files.names(directory)]


def test_the_audio_of_a_submission_in_progress_stays(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    enqueue = stores.queue.enqueue

    def swept(*arguments: Any) -> None:  # between the write of the audio and the commit of its row
        assert stores.maintenance.delete_orphans(LATER_S) == 0
        enqueue(*arguments)

    monkeypatch.setattr(stores.queue, "enqueue", swept)
    job = stores.submit(content=b"RIFF....")
    assert stores.maintenance.delete_orphans(LATER_S) == 0
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"RIFF...."


def test_files_that_two_sweeps_in_a_row_found_without_a_row_are_quarantined(stores: Stores):
    job = stores.submit()
    stores.files.write(f"jobs/{DELETED}/audio", b"x")
    assert [stores.maintenance.delete_orphans(LATER_S) for _ in range(3)] == [0, 1, 0]
    assert names(stores, "jobs") == [job.job_id]


def test_files_of_uploads_are_swept_likewise(stores: Stores):
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    stores.files.write(f"uploads/{DELETED}/000000000000000-x", b"x")
    assert [stores.uploads.delete_orphans(LATER_S) for _ in range(3)] == [0, 1, 0]
    assert names(stores, "uploads") == [upload.upload_id]


def test_one_round_of_the_janitor_sweeps_jobs_and_uploads(database: Database, tmp_path: Path):
    stores = Stores.over(database, Files(str(tmp_path / "files")))
    for directory in ("jobs", "uploads"):
        stores.files.write(f"{directory}/{DELETED}/x", b"x")
        os.utime(tmp_path / "files" / directory / DELETED, (0.0, 0.0))
    Janitor(stores.maintenance, stores.uploads, may_sweep=lambda: False).tidy_once()
    assert names(stores, "jobs") + names(stores, "uploads") == [DELETED, DELETED]
    Janitor(stores.maintenance, stores.uploads).tidy_once()
    assert names(stores, "jobs") + names(stores, "uploads") == []


def orphans(stores: Stores, clock: FakeClock) -> Orphans:
    return Orphans(stores.database, stores.files, "jobs", jobs.c.job_id, clock.now_s)


@pytest.fixture(params=["local", "object storage"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(str(tmp_path / "files") if request.param == "local" else f"memory://{tmp_path}/q")


def test_files_without_a_row_are_kept_for_a_week_and_then_deleted(database: Database, storage: Files):
    stores, clock = Stores.over(database, storage), FakeClock(1_800_000_000.0)
    stores.files.write(f"jobs/{DELETED}/chunks/1", b"x")
    sweep = orphans(stores, clock)
    assert sum(sweep.delete(LATER_S) for _ in range(2)) == 1
    assert names(stores, "quarantine/jobs") == [f"1800000000-{DELETED}"]
    clock.advance(QUARANTINE_S)
    sweep.delete(LATER_S)
    assert storage.read([f"quarantine/jobs/1800000000-{DELETED}/chunks/1"]) == [b"x"]
    clock.advance(1.0)
    sweep.delete(LATER_S)
    assert names(stores, "quarantine/jobs") == []


def test_files_come_back_from_quarantine_once_the_right_database_is_back(
    database: Database, storage: Files, tmp_path: Path
):
    stores, clock = Stores.over(database, storage), FakeClock(1_800_000_000.0)
    job = stores.submit(content=b"RIFF....")
    wrong = Database(sqlite_url(tmp_path / "backup.db"))
    wrong.create_tables()
    swept = Orphans(wrong, storage, "jobs", jobs.c.job_id, clock.now_s)
    assert sum(swept.delete(LATER_S) for _ in range(2)) == 1
    storage.write(f"jobs/{job.job_id}/chunks/1", b"y")  # of a run that went on meanwhile
    clock.advance(3600.0)
    assert orphans(stores, clock).delete(LATER_S) == 0
    assert sorted(names(stores, f"jobs/{job.job_id}")) == ["audio", "chunks"]
    assert names(stores, "quarantine/jobs") == []
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"RIFF...."
    wrong.close()


@pytest.mark.parametrize("name", ["readme", "0123", ".0" * 16, "A" * 32, "g" * 32, "0" * 33])
def test_files_without_a_name_of_ours_are_left_alone(database: Database, storage: Files, name: str):
    stores = Stores.over(database, storage)
    storage.write(f"jobs/{name}/x", b"x")
    storage.write(f"quarantine/jobs/{name}/x", b"x")
    assert sum(stores.maintenance.delete_orphans(LATER_S) for _ in range(3)) == 0
    assert storage.read([f"jobs/{name}/x", f"quarantine/jobs/{name}/x"]) == [b"x", b"x"]
