"""Files that belong to nothing: of a submission that was cut short, or of a deletion that did not come to its end."""

from __future__ import annotations

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

_NAMES_AT_ONCE = 500


class Orphans:
    """What lies in a directory under a name that no row has.

    Files may be written before their row, within one call: what is new may yet get one. Object storage does not say how
    old a directory is; there a name is an orphan once two sweeps in a row have found no row of it.
    """

    def __init__(self, database: Database, files: Files, directory: str, ids: sa.ColumnElement[str]) -> None:
        """ids: the column that has the names of all that is not to be deleted."""
        self._db, self._files, self._directory, self._ids = database, files, directory, ids
        self._suspects: set[str] = set()

    def delete(self, before_s: float) -> int:
        """One sweep; how many names went. before_s: Unix time; what has changed since is left alone."""
        old, ageless = set(), set()
        for name, changed_s in self._files.names(self._directory):
            if changed_s is None:
                ageless.add(name)
            elif changed_s < before_s:
                old.add(name)
        orphans = self._unknown(old | ageless)
        due = orphans & (old | self._suspects)
        self._suspects = orphans - due
        return sum(self._delete(name) for name in due)

    def _unknown(self, names: set[str]) -> set[str]:
        rest, known = sorted(names), set()
        for start in range(0, len(rest), _NAMES_AT_ONCE):
            statement = sa.select(self._ids).where(self._ids.in_(rest[start : start + _NAMES_AT_ONCE]))
            with self._db.reading() as connection:
                known |= set(connection.execute(statement).scalars())
        return names - known

    def _delete(self, name: str) -> bool:
        try:
            self._files.delete_tree(f"{self._directory}/{name}")
        except SourceUnavailable:
            log.warning("files that belong to nothing are left behind", path=f"{self._directory}/{name}")
            return False
        return True
