"""Files that belong to nothing are deleted, over any storage; those of a submission that is under way are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.janitor import Janitor

LATER_S = 4e9


@pytest.fixture
def stores(database: Database, tmp_path: Path) -> Stores:
    """Over a storage that does not say how old a directory is, as object storage does not."""
    return Stores.over(database, Files(f"memory://{tmp_path}"))


def names(stores: Stores, directory: str) -> list[str]:
    return [name for name, _ in stores.files.names(directory)]


def test_the_audio_of_a_submission_under_way_stays(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    enqueue = stores.queue.enqueue

    def swept(*told: Any) -> None:  # between the write of the audio and the commit of its row
        assert stores.upkeep.delete_orphans(LATER_S) == 0
        enqueue(*told)

    monkeypatch.setattr(stores.queue, "enqueue", swept)
    job = stores.submit(content=b"RIFF....")
    assert stores.upkeep.delete_orphans(LATER_S) == 0
    with stores.runs.open_audio(job) as file:
        assert file.read() == b"RIFF...."


def test_what_two_sweeps_in_a_row_found_without_a_row_is_deleted(stores: Stores):
    job = stores.submit()
    stores.files.write("jobs/nobody/audio", b"x")
    assert [stores.upkeep.delete_orphans(LATER_S) for _ in range(3)] == [0, 1, 0]
    assert names(stores, "jobs") == [job.job_id]


def test_files_of_uploads_are_swept_likewise(stores: Stores):
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    stores.files.write("uploads/gone/000000000000000-x", b"x")
    assert [stores.uploads.delete_orphans(LATER_S) for _ in range(3)] == [0, 1, 0]
    assert names(stores, "uploads") == [upload.upload_id]


def test_one_round_of_the_janitor_sweeps_jobs_and_uploads(database: Database, tmp_path: Path):
    stores = Stores.over(database, Files(str(tmp_path / "files")))
    for directory in ("jobs", "uploads"):
        stores.files.write(f"{directory}/gone/x", b"x")
        os.utime(tmp_path / "files" / directory / "gone", (0.0, 0.0))
    Janitor(stores.upkeep, stores.uploads).tidy_once()
    assert names(stores, "jobs") + names(stores, "uploads") == []
