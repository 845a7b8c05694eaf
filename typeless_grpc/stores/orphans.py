"""Files that belong to nothing: of a submission that was cut short, or of a deletion that did not come to its end.

They are not deleted at once, since a database that was restored from yesterday's backup knows nothing of today's files:
first they go into quarantine, `quarantine/DIRECTORY/TIME-NAME`, and come back from there once there is a row of theirs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# How long an operator has to find out that the database is not the right one.
QUARANTINE_S = 7 * 86_400.0
_NAMES_AT_ONCE = 500
# What jobs and uploads are called. All else in their directories is somebody else's.
_IS_OURS = re.compile(r"[0-9a-f]{32}").fullmatch


class Orphans:
    """What lies in a directory under a name that no row has.

    Files may be written before their row, within one call: what is new may yet get one. Object storage does not say how
    old a directory is; there a name is an orphan once two sweeps in a row have found no row of it.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        directory: str,
        ids: sa.ColumnElement[str],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """ids: the column that has the names of all that is not to be deleted. wall_s: Unix time in seconds."""
        self._db, self._files, self._directory, self._ids = database, files, directory, ids
        self._wall_s = wall_s
        self._suspects: set[str] = set()

    def delete(self, before_s: float) -> int:
        """One sweep; how many names went into quarantine. before_s: Unix time; what has changed since is left alone."""
        self._go_through_quarantine()
        old, ageless = set(), set()
        for name, changed_s in self._files.names(self._directory):
            if not _IS_OURS(name):
                continue
            if changed_s is None:
                ageless.add(name)
            elif changed_s < before_s:
                old.add(name)
        orphans = (old | ageless) - self._known(old | ageless)
        due = orphans & (old | self._suspects)
        self._suspects = orphans - due
        moved = [name for name in due if self._moved(self._place(name), f"{self._quarantine}/{self._now()}-{name}")]
        if moved:
            log.warning("files without a row are in quarantine", place=self._quarantine, n_names=len(moved))
        return len(moved)

    def _go_through_quarantine(self) -> None:
        """Take back what has a row again, and delete what has had none for long."""
        there = list(self._quarantined())
        known = self._known({name for _, name in there})
        for put_s, name in there:
            place = f"{self._quarantine}/{put_s}-{name}"
            if name in known:
                if self._moved(place, self._place(name)):
                    log.warning("files that have a row again are back from quarantine", path=self._place(name))
            elif put_s < self._wall_s() - QUARANTINE_S:
                self._deleted(place)

    def _quarantined(self) -> Iterator[tuple[int, str]]:
        for entry, _ in self._files.names(self._quarantine):
            put_s, _, name = entry.partition("-")
            if put_s.isdecimal() and _IS_OURS(name):
                yield int(put_s), name

    @property
    def _quarantine(self) -> str:
        return f"quarantine/{self._directory}"

    def _place(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _now(self) -> int:
        return int(self._wall_s())

    def _known(self, names: set[str]) -> set[str]:
        rest, known = sorted(names), set()
        for start in range(0, len(rest), _NAMES_AT_ONCE):
            statement = sa.select(self._ids).where(self._ids.in_(rest[start : start + _NAMES_AT_ONCE]))
            with self._db.reading() as connection:
                known |= set(connection.execute(statement).scalars())
        return known

    def _moved(self, path: str, target: str) -> bool:
        try:
            self._files.move_tree(path, target)
        except SourceUnavailable:
            log.warning("files could not be moved", path=path, target=target)
            return False
        return True

    def _deleted(self, path: str) -> None:
        try:
            self._files.delete_tree(path)
        except SourceUnavailable:
            log.warning("files that belong to nothing are left behind", path=path)
