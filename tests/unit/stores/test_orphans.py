"""Files that belong to nothing are deleted, over any storage; those of a submission that is under way are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.files import Files

LATER_S = 4e9


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "jobs.db"))
    opened.create_tables()
    yield opened
    opened.close()


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
