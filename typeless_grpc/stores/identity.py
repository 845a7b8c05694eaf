"""One id for a database and a storage that belong together.

Sweeps delete files without a row. With the wrong database, no file would have one; with the wrong storage, jobs would
have no audio. So both have the same id; if the ids differ, no server starts and no sweep runs.

The storage gets its id first, marked as new, in the transaction that stores it in the database. A start that is
interrupted in between leaves either no id or the mark.
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
        """Give both an id if neither has one. Raises InvalidInput, with what to do, if their ids differ.

        Several servers may do so at once.
        """
        # Between the two reads another server may have given both an id: then the second check finds them equal.
        if self._mismatch() is not None and (why := self._mismatch()) is not None:
            raise InvalidInput("storage_url", why, reason="STORAGE_MISMATCH")

    def is_settled(self) -> bool:
        """Whether both still have the same id. Raises SourceUnavailable."""
        of_database = self._of_database()
        return of_database is not None and of_database == self._of_storage()[0]

    def _mismatch(self) -> str | None:
        """Give an id to both if neither has one. Return what is wrong, None if the ids are equal."""
        of_database, (of_storage, is_new) = self._of_database(), self._of_storage()
        if of_database is None and (of_storage is None or is_new):
            of_database = self._begun()
            of_storage, is_new = self._of_storage()
        if of_storage is None or of_database != of_storage:
            return _mismatch(of_database, of_storage)
        if is_new:
            self._files.write(FILE, of_storage.encode())
        return None

    def _of_database(self) -> str | None:
        with self._db.reading() as connection:
            return connection.execute(sa.select(store_identity.c.store_id)).scalar_one_or_none()

    def _of_storage(self) -> tuple[str | None, bool]:
        """Return the storage's id, and whether it is marked as new."""
        try:
            with self._files.open(FILE) as file:
                store_id, _, mark = file.read(_LONGEST).decode("ascii", "replace").strip().partition(" ")
        except FileNotFoundError:
            return None, False
        return store_id, mark == _NEW

    def _begun(self) -> str:
        """Return the id of both; create it unless another server has."""
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


def _mismatch(of_database: str | None, of_storage: str | None) -> str:
    """Return the error message, with what to do."""
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
