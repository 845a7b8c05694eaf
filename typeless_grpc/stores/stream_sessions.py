"""Sessions of streams that servers share: rows in the database, and audio in the storage.

Each write checks the token of the lease and the number of the batch, in one statement. A batch whose answer was lost is
written again, without effect. Parts of audio are written before the row that names them; their names contain the token,
so that a server that lost its lease overwrites nothing.
"""

from __future__ import annotations

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable, WrongState
from typeless_grpc.stores.database import Database, metadata
from typeless_grpc.stores.files import Files
from typeless_grpc.streaming.durable_store import Batch, Lease, StoredSession
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

DIRECTORY = "streams"
_DELETED_AT_ONCE = 100

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

    def __init__(self, database: Database, files: Files, ttl_s: float) -> None:
        """ttl_s: seconds without a write after which a session is deleted."""
        self._db, self._files, self._ttl_s = database, files, ttl_s
        self._has_answered = False  # whether the last search for expired sessions succeeded

    def use(self, ttl_s: float) -> None:
        """Apply this time to live from the next write of a session on."""
        self._ttl_s = ttl_s

    def create(self, session_id: str, owner: str, config: bytes) -> Lease:
        """See `DurableStore`."""
        with self._db.writing() as connection:
            row = {"session_id": session_id, "owner": owner, "config": config, "expire_s": self._expire_s()}
            fresh = {"token": 1, "n_batches": 0, "state": b"", "audio_bytes": 0}
            connection.execute(sa.insert(sessions).values(row | fresh))
        return Lease(session_id, 1)

    def take(self, session_id: str, owner: str) -> StoredSession | None:
        """See `DurableStore`."""
        is_it = (sessions.c.session_id == session_id) & (sessions.c.owner == owner)
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
        return self._files.read([name])[0]

    def append(self, lease: Lease, batch: Batch) -> None:
        """See `DurableStore`."""
        name = f"{DIRECTORY}/{lease.session_id}/{lease.token}-{batch.number}" if batch.audio else None
        if name is not None:
            self.renew(lease)  # so that a server without the lease writes no file
            self._files.check_room(len(batch.audio))
            self._files.write(name, batch.audio)
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

    def renew(self, lease: Lease) -> None:
        """See `DurableStore`."""
        with self._db.writing() as connection:
            renewed = sa.update(sessions).where(self._is_held(lease)).values(expire_s=self._expire_s())
            if not connection.execute(renewed).rowcount:
                raise _taken_error()

    def delete(self, lease: Lease) -> None:
        """See `DurableStore`."""
        with self._db.writing() as connection:
            is_held = sa.select(sessions.c.session_id).where(self._is_held(lease))
            found = connection.execute(is_held).scalar_one_or_none()
        if found is not None:
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
        for session_id in expired:
            self._delete(session_id, (sessions.c.session_id == session_id) & is_over)
        return len(expired)

    def _delete(self, session_id: str, where: sa.ColumnElement[bool]) -> None:
        """Delete a session if the condition holds. Its row is deleted first, so that no server takes it meanwhile."""
        with self._db.writing() as connection:
            if not connection.execute(sa.delete(sessions).where(where)).rowcount:
                return
            connection.execute(sa.delete(batches).where(batches.c.session_id == session_id))
        try:
            self._files.delete_tree(f"{DIRECTORY}/{session_id}")
        except SourceUnavailable:
            log.warning("the audio of a session that is over was not deleted", place=f"{DIRECTORY}/{session_id}")

    def _is_held(self, lease: Lease) -> sa.ColumnElement[bool]:
        return (sessions.c.session_id == lease.session_id) & (sessions.c.token == lease.token)

    def _expire_s(self) -> sa.ColumnElement[float]:
        return self._db.steady_s() + self._ttl_s


def _taken_error() -> WrongState:
    return WrongState("Another server has resumed this session.", reason="SESSION_TAKEN")
