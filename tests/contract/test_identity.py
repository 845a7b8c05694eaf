"""A database and a storage that belong together have one id; others are refused before anything is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa

from tests.contract.conftest import Stores
from typeless_grpc.app.background import keep_jobs
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput
from typeless_grpc.stores.database import Database, sqlite_url, store_identity
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.identity import FILE, StoreIdentity


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "other.db"))
    opened.create_tables()
    yield opened
    opened.close()


@pytest.fixture
def other_files(tmp_path: Path) -> Files:
    return Files(str(tmp_path / "other"))


def id_of(files: Files) -> str:
    return files.read([FILE])[0].decode()


def use(database: Database, files: Files) -> None:
    """Start with them, and file a job."""
    StoreIdentity(database, files).settle()
    Stores.over(database, files).submit()


def refusal(database: Database, files: Files) -> str:
    with pytest.raises(InvalidInput) as caught:
        StoreIdentity(database, files).settle()
    assert caught.value.reason == "STORAGE_MISMATCH"
    assert not StoreIdentity(database, files).is_settled()
    return caught.value.message


def test_a_start_gives_both_one_id_and_later_starts_find_it(database: Database, files: Files):
    use(database, files)
    before = id_of(files)
    for _ in range(2):
        StoreIdentity(database, files).settle()
    assert StoreIdentity(database, files).is_settled()
    assert id_of(files) == before


def test_a_storage_beside_a_new_database_stops_the_start(database: Database, files: Files, other_database: Database):
    use(database, files)
    assert "delete the file 'store-id'" in refusal(other_database, files)
    files.delete_tree(FILE)
    StoreIdentity(other_database, files).settle()
    assert StoreIdentity(other_database, files).is_settled()


def test_a_storage_beside_a_database_with_another_one_stops_the_start(
    database: Database, files: Files, other_database: Database, other_files: Files
):
    use(database, files)
    use(other_database, other_files)
    mine = id_of(files)
    assert f"write {mine} into the file 'store-id'" in refusal(database, other_files)
    other_files.write(FILE, f"{mine}\n".encode())
    StoreIdentity(database, other_files).settle()


def test_a_database_beside_an_empty_storage_stops_the_start_even_before_its_first_job(
    database: Database, files: Files, other_files: Files
):
    StoreIdentity(database, files).settle()
    assert "have no id" in refusal(database, other_files)


class CutShort(Files):
    """A storage whose server dies right after a write, or right before it."""

    def __init__(self, url: str, n_writes: int) -> None:
        super().__init__(url)
        self._n_left = n_writes

    def write(self, path: str, data: bytes | BinaryIO | Sequence[bytes]) -> None:
        if self._n_left:
            super().write(path, data)
        self._n_left -= 1
        if self._n_left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n_writes", [0, 1, 2])
def test_a_start_after_an_interrupted_one_succeeds(database: Database, tmp_path: Path, n_writes: int):
    url = str(tmp_path / "storage")
    with pytest.raises(KeyboardInterrupt):
        StoreIdentity(database, CutShort(url, n_writes)).settle()
    files = Files(url)
    StoreIdentity(database, files).settle()
    assert StoreIdentity(database, files).is_settled()
    assert len(id_of(files)) == 32


def test_a_start_after_one_that_left_its_mark_succeeds(database: Database, files: Files):
    StoreIdentity(database, files).settle()
    files.write(FILE, f"{id_of(files)} new".encode())
    StoreIdentity(database, files).settle()
    assert len(id_of(files)) == 32


def test_a_database_and_a_storage_of_an_earlier_version_are_taken_to_belong_together(database: Database, files: Files):
    Stores.over(database, files).submit()
    with database.writing() as connection:
        store_identity.drop(connection)
    database.create_tables()
    StoreIdentity(database, files).settle()
    assert StoreIdentity(database, files).is_settled()


def test_servers_that_start_at_once_agree(database: Database, files: Files):
    n_at_once = 8
    together = threading.Barrier(n_at_once)

    def start(_: int) -> str:
        together.wait()
        use(database, files)
        return id_of(files)

    with ThreadPoolExecutor(n_at_once) as pool:
        assert len(set(pool.map(start, range(n_at_once)))) == 1
    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(store_identity)).scalar_one() == 1


BROKEN: dict[str, Callable[[Files], None]] = {
    "unmounted": lambda files: files.delete_tree(FILE),
    "of another database": lambda files: files.write(FILE, b"another"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_storage_that_is_changed_while_the_server_runs_is_noticed(
    database: Database, files: Files, change: Callable[[Files], None]
):
    use(database, files)
    change(files)
    assert not StoreIdentity(database, files).is_settled()


async def test_a_server_does_not_start_over_files_of_another_database(tmp_path: Path):
    parts: dict[str, Any] = {"engine": ScriptedEngine(), "detector": LoudnessDetector()}
    async with keep_jobs(Settings(data_dir=tmp_path, max_concurrent_jobs=0), **parts):
        pass
    elsewhere = Settings(data_dir=tmp_path, max_concurrent_jobs=0, database_url=f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(InvalidInput, match="belong to another database"):
        async with keep_jobs(elsewhere, **parts):
            pass
