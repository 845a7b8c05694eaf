"""What every store of sessions does: in memory, and over each database."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres
from typeless_grpc.errors import NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.postgresql import RETRY_S
from typeless_grpc.stores.stream_sessions import SqlSessionStore
from typeless_grpc.streaming.durable_store import Batch, DurableStore
from typeless_grpc.streaming.memory_sessions import MemorySessionStore


def store_on(database: Database, directory: Path, ttl_s: float = 60.0) -> SqlSessionStore:
    return SqlSessionStore(database, Files(str(directory)), ttl_s)


@pytest.fixture
def store(database: Database, tmp_path: Path) -> DurableStore:
    return store_on(database, tmp_path)


def check_store(store: DurableStore) -> None:
    """A session is what its batches are, and has one owner at a time."""
    first = store.create("s", "ann", b"config")
    store.append(first, Batch(0, b"r0", b"at 0", b"abc"))
    store.append(first, Batch(1, b"r1", b"at 1"))
    store.append(first, Batch(1, b"r1", b"at 1"))  # its answer was lost
    store.append(first, Batch(2, b"r2", b"at 2", b"de"))
    store.renew(first)
    assert store.take("s", "bob") is None
    assert store.take("another", "ann") is None
    taken = store.take("s", "ann")
    assert taken is not None
    assert taken.lease.token > first.token
    assert (taken.config, taken.state, taken.n_batches, taken.audio_bytes) == (b"config", b"at 2", 3, 5)
    assert list(taken.records) == [b"r0", b"r1", b"r2"]
    assert [store.audio(name) for name in taken.audio] == [b"abc", b"de"]
    for lost in (lambda: store.append(first, Batch(3, b"r", b"at 3", b"x")), lambda: store.renew(first)):
        with pytest.raises(WrongState) as caught:
            lost()
        assert caught.value.reason == "SESSION_TAKEN"
    store.delete(first)  # not its own any more
    store.append(taken.lease, Batch(3, b"r3", b"at 3"))
    again = store.take("s", "ann")
    assert again is not None
    assert (again.n_batches, again.audio_bytes) == (4, 5)
    store.delete(again.lease)
    assert store.take("s", "ann") is None
    with pytest.raises(WrongState):
        store.append(again.lease, Batch(4, b"r4", b"at 4"))


def test_a_session_in_a_database_has_one_owner(store: DurableStore, tmp_path: Path):
    check_store(store)
    assert not (tmp_path / "streams" / "s").exists()


def test_a_session_in_memory_has_one_owner():
    check_store(MemorySessionStore())


def test_a_server_without_the_lease_leaves_no_file(store: DurableStore, tmp_path: Path):
    lost = store.create("s", "", b"")
    store.take("s", "")
    with pytest.raises(WrongState):
        store.append(lost, Batch(0, b"", b"", b"abc"))
    assert not (tmp_path / "streams").exists()


def test_an_expired_session_is_deleted_with_its_audio(database: Database, tmp_path: Path):
    old, young = store_on(database, tmp_path, ttl_s=0.0), store_on(database, tmp_path)
    lease = old.create("old", "", b"")
    old.append(lease, Batch(0, b"r", b"s", b"audio"))
    young.create("young", "", b"")
    time.sleep(0.01)
    assert old.delete_expired() == 0  # it may have been an outage: there is time to renew
    assert old.delete_expired() == 1
    assert old.take("old", "") is None
    assert young.take("young", "") is not None
    assert not (tmp_path / "streams" / "old").exists()


@pytest.mark.parametrize("damage", [None, b"", b"ab", b"abd"], ids=["missing", "empty", "short", "changed"])
def test_audio_that_is_not_as_it_was_stored_is_not_returned(store: DurableStore, damage: bytes | None, tmp_path: Path):
    store.append(store.create("s", "", b""), Batch(0, b"r", b"s", b"abc"))
    taken = store.take("s", "")
    assert taken is not None
    (name,) = taken.audio
    assert store.audio(name) == b"abc"
    path = tmp_path / name
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(NotFound) as caught:
        store.audio(name)
    assert caught.value.reason == "AUDIO_DAMAGED"


def test_a_part_that_was_written_while_the_lease_was_lost_is_deleted(database: Database, tmp_path: Path):
    class SlowFiles(Files):
        def write(self, path: str, data: Any) -> None:
            super().write(path, data)
            assert other.take("s", "") is not None  # while the first server is frozen

    slow, other = SqlSessionStore(database, SlowFiles(str(tmp_path)), 60.0), store_on(database, tmp_path)
    lease = slow.create("s", "", b"")
    with pytest.raises(WrongState):
        slow.append(lease, Batch(0, b"r", b"s", b"abc"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "s"]


def test_a_part_that_counts_is_kept_although_its_answer_was_lost(store: DurableStore):
    lease = store.create("s", "", b"")
    store.append(lease, Batch(0, b"r", b"s", b"abc"))
    taken = store.take("s", "")
    assert taken is not None
    with pytest.raises(WrongState):
        store.append(lease, Batch(0, b"r", b"s", b"abc"))
    assert store.audio(taken.audio[0]) == b"abc"


def test_the_audio_of_an_expired_session_is_deleted_once_the_storage_answers(database: Database, tmp_path: Path):
    class UnavailableFiles(Files):
        def delete_tree(self, path: str) -> None:
            raise SourceUnavailable("It is down.", reason="STORE_UNAVAILABLE")

    down = SqlSessionStore(database, UnavailableFiles(str(tmp_path)), 0.0)
    lease = down.create("s", "ann", b"")
    down.append(lease, Batch(0, b"r", b"s", b"audio"))
    time.sleep(0.01)
    assert [down.delete_expired() for _ in range(3)] == [0, 0, 0]
    assert down.take("s", "ann") is None  # it is closed
    with pytest.raises(WrongState):
        down.renew(lease)
    up = store_on(database, tmp_path)
    assert [up.delete_expired() for _ in range(3)] == [0, 1, 0]
    assert not (tmp_path / "streams" / "s").exists()


def test_the_stored_audio_of_an_owner_is_bounded(database: Database, tmp_path: Path):
    store = SqlSessionStore(database, Files(str(tmp_path)), 60.0, max_owner_bytes=10)
    first, second = store.create("a", "ann", b""), store.create("b", "ann", b"")
    store.append(first, Batch(0, b"r", b"s", b"12345678"))
    with pytest.raises(RateLimited) as caught:
        store.append(second, Batch(0, b"r", b"s", b"123"))
    assert caught.value.reason == "UPLOAD_QUOTA_EXCEEDED"
    store.append(store.create("c", "bob", b""), Batch(0, b"r", b"s", b"123"))
    store.use(60.0, 7)
    with pytest.raises(RateLimited):
        store.create("d", "ann", b"")
    store.delete(first)
    store.append(second, Batch(0, b"r", b"s", b"123"))


def test_an_unavailable_database_is_reported(postgres: Postgres, tmp_path: Path):
    database: Any = Database(postgres.empty_database())
    try:
        database.create_tables()
        store = store_on(database, tmp_path)
        lease = store.create("s", "", b"")
        postgres.stop()
        try:
            with pytest.raises(SourceUnavailable):
                store.renew(lease)
            with pytest.raises(SourceUnavailable):
                store.delete_expired()
        finally:
            postgres.start()
        time.sleep(RETRY_S + 0.1)
        store.append(lease, Batch(0, b"r", b"s"))
        assert store.delete_expired() == 0
    finally:
        database.close()
