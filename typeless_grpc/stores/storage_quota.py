"""How much audio one owner may store."""

from __future__ import annotations

import sqlalchemy as sa

from typeless_grpc.errors import RateLimited
from typeless_grpc.stores.database import Database, job_audio, uploads


class StorageQuota:
    """The bytes of one owner: its uploads, and the audio of its jobs, sent along or fetched."""

    def __init__(self, database: Database, max_bytes: int) -> None:
        self._db, self._max_bytes = database, max_bytes

    def check(self, owner: str, n_bytes: int) -> None:
        """Raise RateLimited where so many more bytes are too many: before they are written."""
        with self._db.reading() as connection:
            self._check(connection, owner, n_bytes)

    def check_within(self, connection: sa.Connection, owner: str, n_bytes: int) -> None:
        """The same within the transaction that counts them, so that no two calls at once take the same room."""
        if not self._db.is_sqlite:  # where a transaction that writes is the only one
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(owner, 7409270412))))
        self._check(connection, owner, n_bytes)

    def _check(self, connection: sa.Connection, owner: str, n_bytes: int) -> None:
        n_held = sum(
            int(
                connection.execute(
                    sa.select(sa.func.coalesce(sa.func.sum(table.c.size_bytes), 0)).where(table.c.owner == owner)
                ).scalar_one()
            )
            for table in (uploads, job_audio)
        )
        if n_held + n_bytes > self._max_bytes:
            message = f"Your audio here has {n_held} bytes, of {self._max_bytes} that are kept for you; these are more."
            raise RateLimited(message, reason="UPLOAD_QUOTA_EXCEEDED", retry_after_s=60.0, subject=owner)
