"""One id for the database and the storage that belong together: whether what one knows of can lie in the other.

Sweeps take files without a row for waste. Beside a database that is not theirs all files look so, and beside a storage
that is not its own a database has jobs without audio. So both have the same id, and a server does not start, and no
sweep is made, where they differ.

Read in this order: rows, then the storage. A job is accepted only once the id is in both, so a database with jobs
beside a storage without an id is no server that has just begun.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from typeless_grpc.errors import InvalidInput
from typeless_grpc.stores.database import Database, jobs, store_identity, uploads
from typeless_grpc.stores.files import Files

FILE = "store-id"
_LONGEST = 64


class StoreIdentity:
    """The ids of a database and of a storage."""

    def __init__(self, database: Database, files: Files) -> None:
        self._db, self._files = database, files

    def settle(self) -> None:
        """Give both an id where neither has one. Raises InvalidInput, which says what to do, where theirs differ.

        Any number of servers may do so at once.
        """
        # Between the two reads another server may have begun with both: then the second look finds them alike.
        if self._mismatch() is not None and (why := self._mismatch()) is not None:
            raise InvalidInput("storage_url", why, reason="STORAGE_MISMATCH")

    def is_settled(self) -> bool:
        """Whether both have the same id, as they had at the start. Raises SourceUnavailable."""
        of_database, _ = self._of_database()
        return of_database is not None and of_database == self._of_storage()

    def _mismatch(self) -> str | None:
        of_database, has_rows = self._of_database()
        of_storage = self._of_storage()
        if of_storage is None and (of_database is None or not has_rows):
            self._files.write(FILE, (of_database or self._filed()).encode())
            return None
        if of_storage == of_database:
            return None
        back = "Set storage_url, database_url and data_dir to what belongs together."
        if of_database is None:
            return (
                f"the files here belong to another database, which has the id {of_storage}; this one is new. {back} To "
                f"use these two together from now on, delete the file '{FILE}' of the storage: {_CONSEQUENCE}"
            )
        found = f"belong to another database, with the id {of_storage}" if of_storage else "have no id"
        return (
            f"the database has the id {of_database} and jobs or uploads, and the files here {found}. {back} To use "
            f"these two together from now on, write {of_database} into the file '{FILE}' of the storage: {_CONSEQUENCE}"
        )

    def _of_database(self) -> tuple[str | None, bool]:
        """Its id, and whether it has jobs or uploads."""
        has_rows = sa.or_(sa.exists(sa.select(jobs.c.job_id)), sa.exists(sa.select(uploads.c.upload_id)))
        with self._db.reading() as connection:
            of_database = connection.execute(sa.select(store_identity.c.store_id)).scalar_one_or_none()
            return of_database, bool(connection.execute(sa.select(has_rows)).scalar_one())

    def _of_storage(self) -> str | None:
        try:
            with self._files.open(FILE) as file:
                return file.read(_LONGEST).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None

    def _filed(self) -> str:
        """The database's id, made now unless another server was quicker."""
        new = sa.select(sa.literal(1), sa.literal(uuid.uuid4().hex)).where(~sa.exists(sa.select(store_identity.c.id)))
        with self._db.writing() as connection:
            if not self._db.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7409270413)")
            connection.execute(sa.insert(store_identity).from_select(["id", "store_id"], new))
            return str(connection.execute(sa.select(store_identity.c.store_id)).scalar_one())


_CONSEQUENCE = (
    "files that this database does not know are then put aside, and deleted a week later; jobs without audio fail."
)
