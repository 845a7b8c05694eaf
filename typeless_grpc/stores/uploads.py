"""Uploads: their bytes in parts, as they arrived, and rows that say which parts count.

A part is written first and counted afterwards, on the condition that the upload has not changed. Of two calls that
append to one upload at once, one fails, and its part is deleted. Other parts that were never counted are deleted with
the upload.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import sqlalchemy as sa

from typeless_grpc.errors import InvalidInput, NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.jobs.job import State
from typeless_grpc.jobs.store import Upload
from typeless_grpc.stores.database import ID_BYTES, Database, jobs, upload_digests, upload_parts, uploads
from typeless_grpc.stores.files import Files, PartsFile
from typeless_grpc.stores.orphans import Orphans
from typeless_grpc.stores.storage_quota import StorageQuota
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class UploadOptions:
    """How uploads are stored.

    max_bytes: size of one upload. ttl_s: time from its creation, and again from its completion, to its deletion.
    max_unfinished: unfinished uploads of one owner. max_owner_bytes: an owner's uploads and the audio of its jobs
    together. keep_job_audio: keep an upload as long as a job that uses it, instead of until the job ends.
    """

    max_bytes: int = 2 * 1024**3
    ttl_s: float = 86_400.0
    max_unfinished: int = 100
    max_owner_bytes: int = 20 * 1024**3
    keep_job_audio: bool = False


class SqlUploadStore:
    """`UploadStore` over a database and files."""

    def __init__(self, database: Database, files: Files, options: UploadOptions) -> None:
        self._db, self._files, self._options = database, files, options
        self._quota = StorageQuota(database, options.max_owner_bytes)
        self._orphans = Orphans(database, files, "uploads", uploads.c.upload_id)

    def use(self, options: UploadOptions) -> None:
        """Apply these options from now on. What is stored keeps the time at which it expires."""
        self._options = options
        self._quota.use(options.max_owner_bytes)

    def create(self, owner: str, filename: str) -> Upload:
        """See `UploadStore`."""
        with self._db.writing() as connection:
            unfinished = sa.select(sa.func.count()).where(
                uploads.c.owner == owner, sa.not_(uploads.c.is_complete), uploads.c.expire_s > self._db.steady_s()
            )
            if connection.execute(unfinished).scalar_one() >= self._options.max_unfinished:
                message = f"You have {self._options.max_unfinished} unfinished uploads, the most that are kept."
                raise RateLimited(message, reason="TOO_MANY_UPLOADS", retry_after_s=60.0, subject=owner)
            row = connection.execute(
                sa.insert(uploads)
                .values(
                    upload_id=secrets.token_hex(ID_BYTES),
                    owner=owner,
                    filename=filename,
                    size_bytes=0,
                    is_complete=False,
                    create_s=self._db.now_s(),
                    expire_s=self._db.steady_s() + self._options.ttl_s,
                )
                .returning(uploads)
            ).one()
        return _upload(row)

    def get(self, upload_id: str, owner: str | None) -> Upload:
        """See `UploadStore`."""
        kept = sa.or_(uploads.c.expire_s > self._db.steady_s(), self._needed())
        statement = sa.select(uploads).where(uploads.c.upload_id == upload_id, kept)
        if owner is not None:
            statement = statement.where(uploads.c.owner == owner)
        with self._db.reading() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise _not_found(upload_id)
        return _upload(row)

    def append(self, upload: Upload, data: Sequence[bytes]) -> Upload:
        """See `UploadStore`."""
        n_bytes = sum(len(block) for block in data)
        if upload.size_bytes + n_bytes > self._options.max_bytes:
            why = f"an upload has at most {self._options.max_bytes} bytes"
            raise InvalidInput("chunk", why, reason="UPLOAD_TOO_LARGE")
        self._quota.check(upload.owner, n_bytes)
        self._files.check_room(n_bytes)
        path = f"uploads/{upload.upload_id}/{upload.size_bytes:015d}-{uuid.uuid4().hex[:8]}"
        self._files.write(path, data)
        try:
            return self._counted(upload, n_bytes, path)
        except (WrongState, RateLimited):
            self._delete(path)
            raise

    def digest(self, upload: Upload) -> bytes:
        """See `UploadStore`."""
        sha256 = hashlib.sha256()
        with self._reader(upload.upload_id) as file:
            while data := file.read(_READ_BYTES):
                sha256.update(data)
        return sha256.digest()

    def complete(self, upload: Upload, sha256: bytes = b"") -> Upload:
        """See `UploadStore`."""
        expire_s = self._db.steady_s() + self._options.ttl_s
        with self._db.writing() as connection:
            done = self._changed(connection, upload, is_complete=True, expire_s=expire_s)
            if sha256:
                connection.execute(sa.insert(upload_digests).values(upload_id=upload.upload_id, sha256=sha256))
        return done

    def sha256(self, upload_id: str, owner: str | None) -> bytes:
        """See `UploadStore`."""
        statement = sa.select(upload_digests.c.sha256).where(upload_digests.c.upload_id == upload_id)
        if owner is not None:
            of_owner = [
                sa.exists().where(table.c.upload_id == upload_id, table.c.owner == owner) for table in (uploads, jobs)
            ]
            statement = statement.where(sa.or_(*of_owner))
        with self._db.reading() as connection:
            return bytes(connection.execute(statement).scalar_one_or_none() or b"")

    def open(self, upload_id: str, owner: str | None) -> BinaryIO:
        """See `UploadStore`."""
        if not self.get(upload_id, owner).is_complete:
            raise WrongState("The upload is not complete: finish it first.", reason="UPLOAD_INCOMPLETE")
        return self._reader(upload_id)

    def delete_expired(self, limit: int = 500) -> int:
        """Delete expired uploads that no job needs; return how many."""
        is_over = uploads.c.expire_s <= self._db.steady_s()
        due = sa.select(uploads.c.upload_id).where(is_over, ~self._needed()).limit(limit)
        with self._db.writing() as connection:
            deleted = connection.execute(
                # The condition stands twice: a job stored meanwhile extends the upload's life, and PostgreSQL, which
                # waits for that, then checks the outer condition again, but not the inner one.
                sa.delete(uploads).where(uploads.c.upload_id.in_(due), is_over).returning(uploads.c.upload_id)
            ).scalars()
            ids = list(deleted)
            connection.execute(sa.delete(upload_parts).where(upload_parts.c.upload_id.in_(ids)))
            # The SHA-256 identifies a repeated submission, as long as the job of the first one exists.
            of_no_job = upload_digests.c.upload_id.not_in(sa.select(jobs.c.upload_id).where(jobs.c.upload_id.in_(ids)))
            connection.execute(sa.delete(upload_digests).where(upload_digests.c.upload_id.in_(ids), of_no_job))
        for upload_id in ids:
            self._delete(f"uploads/{upload_id}")
        return len(ids)

    def delete_orphans(self, before_s: float) -> int:
        """Quarantine files of deleted uploads: those of an interrupted deletion, and late parts."""
        return self._orphans.delete(before_s)

    def _counted(self, upload: Upload, n_bytes: int, path: str) -> Upload:
        with self._db.writing() as connection:
            self._quota.check_within(connection, upload.owner, n_bytes)
            grown = self._changed(connection, upload, size_bytes=upload.size_bytes + n_bytes)
            connection.execute(
                sa.insert(upload_parts).values(
                    upload_id=upload.upload_id, offset=upload.size_bytes, size_bytes=n_bytes, path=path
                )
            )
        return grown

    def _delete(self, path: str) -> None:
        try:
            self._files.delete_tree(path)
        except SourceUnavailable:
            log.warning("files of an upload could not be deleted now; a sweep will", path=path)

    def _needed(self) -> sa.ColumnElement[bool]:
        """Return the condition that a job has yet to read the upload; with keep_job_audio, that any job uses it."""
        about = jobs.c.upload_id == uploads.c.upload_id
        ended = jobs.c.state.in_([state.value for state in State if state.is_final])
        return sa.exists().where(about) if self._options.keep_job_audio else sa.exists().where(about, ~ended)

    def _changed(self, connection: sa.Connection, upload: Upload, **values: Any) -> Upload:
        """Change an upload, unless another call has done so since it was read."""
        row = connection.execute(
            sa.update(uploads)
            .where(
                uploads.c.upload_id == upload.upload_id,
                uploads.c.size_bytes == upload.size_bytes,
                sa.not_(uploads.c.is_complete),
            )
            .values(**values)
            .returning(uploads)
        ).one_or_none()
        if row is None:
            message = "Another call has added to the upload: GetUpload returns the offset to continue from."
            raise WrongState(message, reason="UPLOAD_OFFSET_MISMATCH")
        return _upload(row)

    def _reader(self, upload_id: str) -> BinaryIO:
        statement = sa.select(upload_parts).where(upload_parts.c.upload_id == upload_id)
        with self._db.reading() as connection:
            rows = connection.execute(statement.order_by(upload_parts.c.offset)).all()
        parts = [(row.offset, row.size_bytes, row.path) for row in rows]
        return cast(BinaryIO, io.BufferedReader(PartsFile(self._files, parts), _READ_BYTES))


def _not_found(upload_id: str) -> NotFound:
    return NotFound(f"There is no upload '{upload_id[:64]}'.", reason="UPLOAD_NOT_FOUND")


def _upload(row: Any) -> Upload:
    return Upload(row.upload_id, row.owner, row.size_bytes, row.is_complete, row.expire_s)
