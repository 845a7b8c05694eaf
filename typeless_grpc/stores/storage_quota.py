"""How much audio one owner may store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from typeless_grpc.errors import RateLimited, SourceUnavailable
from typeless_grpc.stores.database import Database, audio_reservations, job_audio, uploads
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# Added to the limit of a fetch, so that its job can be submitted.
SUBMISSION_S = 60.0


class StorageQuota:
    """Counts the bytes of each owner: its uploads, the audio of its jobs, and audio that is being fetched."""

    def __init__(self, database: Database, max_bytes: int) -> None:
        self._db, self._max_bytes = database, max_bytes

    def use(self, max_bytes: int) -> None:
        """Apply this bound from now on. Stored audio stays."""
        self._max_bytes = max_bytes

    def total_bytes(self) -> int:
        """Return the bytes of all owners' uploads and audio of jobs."""
        counted = sa.union_all(sa.select(uploads.c.size_bytes), sa.select(job_audio.c.size_bytes)).subquery()
        total = sa.select(sa.func.coalesce(sa.func.sum(counted.c.size_bytes), 0))
        with self._db.reading() as connection:
            return int(connection.execute(total).scalar_one())

    def check(self, owner: str, n_bytes: int) -> None:
        """Raise RateLimited if the owner may not store n_bytes more. Call it before they are written."""
        with self._db.reading() as connection:
            self._check(connection, owner, n_bytes)

    def check_within(self, connection: sa.Connection, owner: str, n_bytes: int) -> None:
        """Check within the transaction that counts the bytes, so that no two calls take the same room."""
        if not self._db.is_sqlite:  # SQLite has only one writing transaction at a time
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(owner, 7409270412))))
        self._check(connection, owner, n_bytes)

    def _check(self, connection: sa.Connection, owner: str, n_bytes: int) -> None:
        """Raise RateLimited if `n_bytes` more exceed what an owner may keep of uploads, jobs and reservations."""
        counted = (
            sa.select(uploads.c.size_bytes).where(uploads.c.owner == owner),
            sa.select(job_audio.c.size_bytes).where(job_audio.c.owner == owner),
            sa.select(audio_reservations.c.size_bytes).where(
                audio_reservations.c.owner == owner, audio_reservations.c.expire_s > self._db.steady_s()
            ),
        )
        total = sa.select(sa.func.coalesce(sa.func.sum(sa.union_all(*counted).subquery().c.size_bytes), 0))
        n_held = int(connection.execute(total).scalar_one())
        if n_held + n_bytes > self._max_bytes:
            message = f"Your audio here has {n_held} bytes, of {self._max_bytes} that are kept for you; these are more."
            raise RateLimited(message, reason="UPLOAD_QUOTA_EXCEEDED", retry_after_s=60.0, subject=owner)

    @contextmanager
    def reserve(self, owner: str, lasts_s: float, check_disk: Callable[[int], None]) -> Iterator[StorageReservation]:
        """Reserve room for audio that is being fetched, until the block ends.

        lasts_s: seconds that the fetch may take. check_disk: raises if the disk has no room for this many bytes.
        """
        reservation = StorageReservation(self._db, self, owner, lasts_s + SUBMISSION_S, check_disk)
        try:
            yield reservation
        finally:
            reservation.release()

    def release_within(self, connection: sa.Connection, reservation_id: str) -> None:
        """Release a reservation in the transaction that counts the audio in its place."""
        mine = audio_reservations.c.reservation_id == reservation_id
        connection.execute(sa.delete(audio_reservations).where(mine))

    def delete_expired(self) -> None:
        """Delete reservations of servers that have crashed."""
        with self._db.writing() as connection:
            expired = audio_reservations.c.expire_s <= self._db.steady_s()
            connection.execute(sa.delete(audio_reservations).where(expired))


class StorageReservation:
    """See `AudioReservation`."""

    def __init__(
        self,
        database: Database,
        quota: StorageQuota,
        owner: str,
        lasts_s: float,
        check_disk: Callable[[int], None],
    ) -> None:
        self._db, self._quota, self._owner = database, quota, owner
        self._lasts_s, self._check_disk = lasts_s, check_disk
        self.reservation_id = uuid.uuid4().hex
        self.n_bytes = 0

    def grow_to(self, n_bytes: int) -> None:
        """See `AudioReservation`."""
        if n_bytes <= self.n_bytes:
            return
        self._check_disk(n_bytes)
        expire_s = self._db.steady_s() + self._lasts_s
        values = {"owner": self._owner, "size_bytes": n_bytes, "expire_s": expire_s}
        with self._db.writing() as connection:
            self._quota.check_within(connection, self._owner, n_bytes - self.n_bytes)
            if self.n_bytes:
                mine = audio_reservations.c.reservation_id == self.reservation_id
                connection.execute(sa.update(audio_reservations).where(mine).values(**values))
            else:
                connection.execute(sa.insert(audio_reservations).values(reservation_id=self.reservation_id, **values))
        self.n_bytes = n_bytes

    def release(self) -> None:
        """Release the room; if the database is unavailable, it expires."""
        if not self.n_bytes:
            return
        try:
            with self._db.writing() as connection:
                self._quota.release_within(connection, self.reservation_id)
        except SourceUnavailable:
            log.warning("a reservation of storage could not be released; it will expire")
        self.n_bytes = 0
