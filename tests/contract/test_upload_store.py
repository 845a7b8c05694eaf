"""What every store of uploads does, over each database."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.contract.conftest import Stores
from tests.postgres import Postgres
from typeless_grpc.errors import InvalidInput, NotFound, RateLimited, WrongState
from typeless_grpc.stores.database import Database, upload_digests, uploads
from typeless_grpc.stores.files import Files


def test_bytes_are_kept_part_by_part(stores: Stores):
    upload = stores.uploads.create("ann", "a.wav")
    assert (upload.size_bytes, upload.is_complete, upload.uri) == (0, False, f"upload://{upload.upload_id}")
    for part in (b"abc", b"defgh", b"i"):
        upload = stores.uploads.append(upload, [part])
    assert stores.uploads.get(upload.upload_id, "ann") == upload
    assert upload.size_bytes == 9
    assert stores.uploads.digest(upload) == hashlib.sha256(b"abcdefghi").digest()
    assert stores.uploads.complete(upload).is_complete


def test_a_whole_upload_is_read_as_one_file(stores: Stores):
    upload = stores.uploads.create("ann", "")
    for part in (b"abc", b"defgh", b"i"):
        upload = stores.uploads.append(upload, [part])
    stores.uploads.complete(upload)
    with stores.uploads.open(upload.upload_id, "ann") as file:
        assert file.read(4) == b"abcd"
        assert file.seek(7) == 7
        assert file.read() == b"hi"
        assert file.seek(-2, io.SEEK_END) == 7
        assert file.read(1) == b"h"
        assert file.seek(-6, io.SEEK_CUR) == 2
        assert file.read(3) == b"cde"
        assert file.seek(50) == 50
        assert file.read() == b""


def test_an_unfinished_upload_is_not_read(stores: Stores):
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    with pytest.raises(WrongState) as caught:
        stores.uploads.open(upload.upload_id, "ann")
    assert caught.value.reason == "UPLOAD_INCOMPLETE"


def test_another_owners_upload_is_not_found(stores: Stores):
    upload = stores.uploads.create("ann", "")
    for call in (stores.uploads.get, stores.uploads.open):
        with pytest.raises(NotFound) as caught:
            call(upload.upload_id, "bob")
        assert caught.value.reason == "UPLOAD_NOT_FOUND"
    assert stores.uploads.get(upload.upload_id, None) == upload


def test_of_two_calls_that_append_at_once_one_fails(stores: Stores):
    upload = stores.uploads.create("ann", "")
    together = threading.Barrier(2)

    def append(part: bytes) -> bytes | str:
        together.wait()
        try:
            stores.uploads.append(upload, [part])
        except WrongState as error:
            return error.reason
        return part

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(append, [b"aaa", b"bbbb"]))
    kept = [part for part in results if isinstance(part, bytes)]
    assert len(kept) == 1
    assert "UPLOAD_OFFSET_MISMATCH" in results
    after = stores.uploads.get(upload.upload_id, "ann")
    assert after.size_bytes == len(kept[0])
    assert stores.uploads.digest(after) == hashlib.sha256(kept[0]).digest()
    assert len(stores.files.names(f"uploads/{upload.upload_id}")) == 1


def test_a_complete_upload_does_not_grow(stores: Stores):
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    stores.uploads.complete(upload)
    with pytest.raises(WrongState):
        stores.uploads.append(upload, [b"def"])
    with pytest.raises(WrongState):
        stores.uploads.complete(upload)


def test_an_upload_is_bounded(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"max_bytes": 5})
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    with pytest.raises(InvalidInput) as caught:
        stores.uploads.append(upload, [b"def"])
    assert caught.value.reason == "UPLOAD_TOO_LARGE"
    assert stores.uploads.append(upload, [b"de"]).size_bytes == 5


def test_an_owner_has_a_bounded_number_of_unfinished_uploads(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"max_unfinished": 2})
    first = stores.uploads.create("ann", "")
    stores.uploads.create("ann", "")
    with pytest.raises(RateLimited) as caught:
        stores.uploads.create("ann", "")
    assert caught.value.reason == "TOO_MANY_UPLOADS"
    stores.uploads.create("bob", "")
    stores.uploads.complete(first)
    stores.uploads.create("ann", "")


def test_an_owners_uploads_together_are_bounded(database: Database, files: Files):
    store = Stores.over(database, files, uploads={"max_owner_bytes": 10}).uploads
    first = store.append(store.create("ann", ""), [b"123456"])
    second = store.append(store.create("ann", ""), [b"123"])
    with pytest.raises(RateLimited) as caught:
        store.append(second, [b"45"])
    assert caught.value.reason == "UPLOAD_QUOTA_EXCEEDED"
    assert store.get(second.upload_id, "ann").size_bytes == 3
    store.append(store.create("bob", ""), [b"1234567890"])
    store.complete(store.append(second, [b"4"]))
    assert store.get(first.upload_id, "ann").size_bytes == 6


def test_uploads_expire(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"ttl_s": -1.0})
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    with pytest.raises(NotFound):
        stores.uploads.get(upload.upload_id, "ann")
    assert stores.uploads.delete_expired() == 1
    assert files.names("uploads") == []


def test_an_expiring_upload_stays_if_a_job_for_it_is_submitted(postgres: Postgres, files: Files):
    database = Database(postgres.empty_database())
    database.create_tables()
    stores = Stores.over(database, files, uploads={"ttl_s": -1.0})
    upload = stores.uploads.create("ann", "")
    with ThreadPoolExecutor(1) as pool:
        with database.writing() as connection:  # as the filing of a job does it
            connection.execute(sa.update(uploads).values(expire_s=4e9))
            deleting = pool.submit(stores.uploads.delete_expired)
            while not waits_for_a_lock(database):
                time.sleep(0.01)
        assert deleting.result(30) == 0
    assert stores.uploads.get(upload.upload_id, "ann").expire_s == 4e9
    database.close()


def waits_for_a_lock(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE%%uploads%%'"
    with database.reading() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())


def test_an_upload_remembers_the_sha256_it_was_completed_with(database: Database, files: Files):
    stores = Stores.over(database, files, uploads={"ttl_s": -1.0})
    upload, other = stores.uploads.create("ann", ""), stores.uploads.create("ann", "")
    stores.uploads.complete(upload, b"\x00\xff" * 16)
    stores.uploads.complete(other)
    assert stores.uploads.sha256(upload.upload_id, "ann") == b"\x00\xff" * 16
    assert stores.uploads.sha256(upload.upload_id, None) == b"\x00\xff" * 16
    assert stores.uploads.sha256(upload.upload_id, "bob") == b""
    assert stores.uploads.sha256(other.upload_id, "ann") == b""
    stores.uploads.delete_expired()
    assert stores.uploads.sha256(upload.upload_id, "ann") == b""


def test_a_database_of_an_earlier_version_gets_missing_tables(stores: Stores):
    upload = stores.uploads.create("ann", "")
    with stores.database.writing() as connection:
        upload_digests.drop(connection)
    stores.database.create_tables()
    stores.uploads.complete(upload, bytes(32))
    assert stores.uploads.sha256(upload.upload_id, "ann") == bytes(32)


def test_files_of_deleted_uploads_are_quarantined(stores: Stores):
    upload = stores.uploads.append(stores.uploads.create("ann", ""), [b"abc"])
    stores.files.write(f"uploads/{'0' * 32}/000000000000000-x", b"x")  # its row was deleted, and the process killed
    assert stores.uploads.delete_orphans(before_s=0.0) == 0
    assert stores.uploads.delete_orphans(before_s=4e9) == 1
    assert [name for name, _ in stores.files.names("uploads")] == [upload.upload_id]
