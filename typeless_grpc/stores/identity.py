"""One id for the database and the storage that belong together: whether what one knows of can lie in the other.

Sweeps take files without a row for waste. Beside a database that is not theirs all files look so, and beside a storage
that is not its own a database has jobs without audio. So both have the same id, and a server does not start, and no
sweep is made, where they differ.

The storage gets its id first, marked as new, in the transaction that files it in the database: a start that is cut
short in between leaves either nothing that counts, or the mark behind.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from typeless_grpc.errors import InvalidInput
from typeless_grpc.stores.database import Database, store_identity
from typeless_grpc.stores.files import Files

FILE = "store-id"
_LONGEST = 64
_NEW = "new"


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
        of_database = self._of_database()
        return of_database is not None and of_database == self._of_storage()[0]

    def _mismatch(self) -> str | None:
        """What is wrong, once those without an id have been given one; None where they are alike."""
        of_database, (of_storage, is_new) = self._of_database(), self._of_storage()
        if of_database is None and (of_storage is None or is_new):
            of_database = self._begun()
            of_storage, is_new = self._of_storage()
        if of_storage is None or of_database != of_storage:
            return _told(of_database, of_storage)
        if is_new:
            self._files.write(FILE, of_storage.encode())
        return None

    def _of_database(self) -> str | None:
        with self._db.reading() as connection:
            return connection.execute(sa.select(store_identity.c.store_id)).scalar_one_or_none()

    def _of_storage(self) -> tuple[str | None, bool]:
        """Its id, and whether it is marked as new."""
        try:
            with self._files.open(FILE) as file:
                store_id, _, mark = file.read(_LONGEST).decode("ascii", "replace").strip().partition(" ")
        except FileNotFoundError:
            return None, False
        return store_id, mark == _NEW

    def _begun(self) -> str:
        """The database's id, and the storage's, made now unless another server was quicker."""
        with self._db.writing() as connection:
            if not self._db.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7409270413)")
            there = connection.execute(sa.select(store_identity.c.store_id)).scalar_one_or_none()
            if there is not None:
                return str(there)
            made = uuid.uuid4().hex
            connection.execute(sa.insert(store_identity).values(id=1, store_id=made))
            self._files.write(FILE, f"{made} {_NEW}".encode())
        return made


def _told(of_database: str | None, of_storage: str | None) -> str:
    """What is wrong, and what to do."""
    back = "Set storage_url, database_url and data_dir to what belongs together."
    if of_database is None:
        return (
            f"the files here belong to another database, which has the id {of_storage}; this one is new. {back} To use "
            f"these two together from now on, delete the file '{FILE}' of the storage: {_CONSEQUENCE}"
        )
    found = f"belong to another database, with the id {of_storage}" if of_storage else "have no id"
    return (
        f"the database has the id {of_database}, and the files here {found}. {back} Servers that share a database "
        f"share its storage, too. To use these two together from now on, write {of_database} into the file '{FILE}' of "
        f"the storage: {_CONSEQUENCE}"
    )


_CONSEQUENCE = (
    "files that this database does not know are then put aside, and deleted a week later; jobs without audio fail."
)
