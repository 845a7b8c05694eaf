"""Sessions of streams that servers share: rows in the database, and audio in the storage.

Each write checks the token of the lease and the number of the batch, in one statement. A batch whose answer was lost is
written again and found to be there. Parts of audio are written before the row that names them. Their names contain the
token, so that a server that lost its lease overwrites nothing, and their size and checksum, so that no damaged part is
transcribed.

A session is deleted in three steps, which any server repeats until all are done: nobody can take or write it any more,
its files are deleted, its rows are deleted.
"""

from __future__ import annotations

import zlib

import sqlalchemy as sa

from typeless_grpc.errors import NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.stores.database import Database, metadata
from typeless_grpc.stores.files import Files
from typeless_grpc.streaming.durable_store import Batch, Lease, StoredSession
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

DIRECTORY = "streams"
_DELETED_AT_ONCE = 100
_CLOSED = -1  # n_batches of a session that is being deleted

sessions = sa.Table(
    "stream_sessions",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("config", sa.LargeBinary, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("n_batches", sa.BigInteger, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("audio_bytes", sa.BigInteger, nullable=False),
    sa.Column("expire_s", sa.Double, nullable=False),
    sa.Index("typeless_stream_sessions_expire", "expire_s"),
    sa.Index("typeless_stream_sessions_owner", "owner"),
)

batches = sa.Table(
    "stream_batches",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("records", sa.LargeBinary, nullable=False),
    sa.Column("audio", sa.Text),
)


class SqlSessionStore:
    """See `DurableStore`. Its methods raise SourceUnavailable if the database or the storage does."""

    def __init__(self, database: Database, files: Files, ttl_s: float, max_owner_bytes: int = 20 * 1024**3) -> None:
        """ttl_s: seconds without a write after which a session is deleted. max_owner_bytes: of one owner's audio."""
        self._db, self._files = database, files
        self._ttl_s, self._max_owner_bytes = ttl_s, max_owner_bytes
        self._has_answered = False  # whether the last search for expired sessions succeeded

    def use(self, ttl_s: float, max_owner_bytes: int) -> None:
        """Apply these bounds from the next write of a session on."""
        self._ttl_s, self._max_owner_bytes = ttl_s, max_owner_bytes

    def create(self, session_id: str, owner: str, config: bytes) -> Lease:
        """See `DurableStore`."""
        self._files.check_room(0)
        with self._db.writing() as connection:
            self._check_owner(connection, owner, 0)
            row = {"session_id": session_id, "owner": owner, "config": config, "expire_s": self._expire_s()}
            fresh = {"token": 1, "n_batches": 0, "state": b"", "audio_bytes": 0}
            connection.execute(sa.insert(sessions).values(row | fresh))
        return Lease(session_id, 1)

    def take(self, session_id: str, owner: str) -> StoredSession | None:
        """See `DurableStore`."""
        is_it = (sessions.c.session_id == session_id) & (sessions.c.owner == owner) & (sessions.c.n_batches != _CLOSED)
        with self._db.writing() as connection:
            taken = sa.update(sessions).where(is_it).values(token=sessions.c.token + 1, expire_s=self._expire_s())
            if not connection.execute(taken).rowcount:
                return None
            row = connection.execute(sa.select(sessions).where(is_it)).one()
            stored = sa.select(batches.c.records, batches.c.audio).where(batches.c.session_id == session_id)
            rows = connection.execute(stored.order_by(batches.c.number)).all()
        return StoredSession(
            lease=Lease(session_id, row.token),
            config=row.config,
            state=row.state,
            n_batches=row.n_batches,
            records=[one.records for one in rows],
            audio=[one.audio for one in rows if one.audio],
            audio_bytes=row.audio_bytes,
        )

    def audio(self, name: str) -> bytes:
        """See `DurableStore`."""
        try:
            (data,) = self._files.read([name])
        except FileNotFoundError as error:
            raise _damaged_error() from error
        if not name.endswith(_mark(data)):
            raise _damaged_error()
        return data

    def append(self, lease: Lease, batch: Batch) -> None:
        """See `DurableStore`."""
        name = self._written(lease, batch) if batch.audio else None
        try:
            self._append(lease, batch, name)
        except WrongState:
            if name is not None:
                self._discard(lease, name)
            raise

    def _written(self, lease: Lease, batch: Batch) -> str:
        """Write a part of audio, and return its name."""
        with self._db.reading() as connection:
            owned = sa.select(sessions.c.owner).where(self._is_held(lease))
            owner = connection.execute(owned).scalar_one_or_none()
            if owner is None:
                raise _taken_error()  # and leave no file behind
            self._check_owner(connection, owner, len(batch.audio))
        self._files.check_room(len(batch.audio))
        name = f"{DIRECTORY}/{lease.session_id}/{lease.token}-{batch.number}{_mark(batch.audio)}"
        self._files.write(name, batch.audio)
        return name

    def _append(self, lease: Lease, batch: Batch, name: str | None) -> None:
        """Append a batch once. A repeated write succeeds; without the lease it raises WrongState."""
        with self._db.writing() as connection:
            changed = connection.execute(
                sa.update(sessions)
                .where(self._is_held(lease) & (sessions.c.n_batches == batch.number))
                .values(
                    n_batches=batch.number + 1,
                    state=batch.state,
                    audio_bytes=sessions.c.audio_bytes + len(batch.audio),
                    expire_s=self._expire_s(),
                )
            )
            if changed.rowcount:
                row = {"session_id": lease.session_id, "number": batch.number, "records": batch.records, "audio": name}
                connection.execute(sa.insert(batches).values(row))
                return
            written = sa.select(sessions.c.n_batches).where(self._is_held(lease))
            if connection.execute(written).scalar_one_or_none() != batch.number + 1:
                raise _taken_error()

    def _discard(self, lease: Lease, name: str) -> None:
        """Delete a part that no row names: the lease was lost while it was written."""
        named = sa.select(batches.c.number).where(batches.c.session_id == lease.session_id, batches.c.audio == name)
        with self._db.reading() as connection:
            if connection.execute(named).first() is not None:
                return
        self._files.delete(name)

    def _check_owner(self, connection: sa.Connection, owner: str, n_bytes: int) -> None:
        """Raise RateLimited if the owner may not store so many more bytes."""
        held = sa.select(sa.func.coalesce(sa.func.sum(sessions.c.audio_bytes), 0)).where(sessions.c.owner == owner)
        n_held = int(connection.execute(held).scalar_one())
        if n_held + n_bytes > self._max_owner_bytes:
            message = f"The stored audio of your streams has {n_held} bytes, of {self._max_owner_bytes} at most."
            raise RateLimited(message, reason="UPLOAD_QUOTA_EXCEEDED", retry_after_s=60.0, subject=owner)

    def renew(self, lease: Lease) -> None:
        """See `DurableStore`."""
        with self._db.writing() as connection:
            renewed = sa.update(sessions).where(self._is_held(lease)).values(expire_s=self._expire_s())
            if not connection.execute(renewed).rowcount:
                raise _taken_error()

    def delete(self, lease: Lease) -> None:
        """See `DurableStore`."""
        self._delete(lease.session_id, self._is_held(lease))

    def delete_expired(self) -> int:
        """See `DurableStore`. After an outage, the first call deletes nothing, so that leases can be renewed."""
        was_there, self._has_answered = self._has_answered, False
        is_over = sessions.c.expire_s < self._db.steady_s()
        with self._db.reading() as connection:
            wanted = sa.select(sessions.c.session_id).where(is_over).limit(_DELETED_AT_ONCE)
            expired = connection.execute(wanted).scalars().all()
        self._has_answered = True
        if not was_there:
            return 0
        return sum(self._delete(session_id, (sessions.c.session_id == session_id) & is_over) for session_id in expired)

    def _delete(self, session_id: str, where: sa.ColumnElement[bool]) -> bool:
        """Delete a session if this holds. Return whether it did; what is left is deleted with the expired sessions."""
        closed = {"token": sessions.c.token + 1, "n_batches": _CLOSED, "expire_s": 0.0}
        with self._db.writing() as connection:
            if not connection.execute(sa.update(sessions).where(where).values(closed)).rowcount:
                return False
        try:
            self._files.delete_tree(f"{DIRECTORY}/{session_id}")
        except SourceUnavailable:
            log.warning("the audio of a session could not be deleted; it is tried again", session_id=session_id)
            return False
        with self._db.writing() as connection:
            connection.execute(sa.delete(batches).where(batches.c.session_id == session_id))
            connection.execute(sa.delete(sessions).where(sessions.c.session_id == session_id))
        return True

    def _is_held(self, lease: Lease) -> sa.ColumnElement[bool]:
        return (sessions.c.session_id == lease.session_id) & (sessions.c.token == lease.token)

    def _expire_s(self) -> sa.ColumnElement[float]:
        return self._db.steady_s() + self._ttl_s


def _mark(data: bytes) -> str:
    return f"-{len(data)}-{zlib.crc32(data):08x}"


def _damaged_error() -> NotFound:
    message = "The stored audio of this session is damaged. Open a new session, and send the audio again."
    return NotFound(message, reason="AUDIO_DAMAGED")


def _taken_error() -> WrongState:
    return WrongState("Another server has resumed this session.", reason="SESSION_TAKEN")
