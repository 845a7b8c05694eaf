"""Finds and deletes files without a row: those of interrupted submissions and deletions.

They are not deleted at once, because a database that was restored from yesterday's backup does not know today's files.
They first go into quarantine, `quarantine/DIRECTORY/TIME-NAME`, and are deleted a week later unless the database has
their row again; then they come back.
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

# The time in which an operator can notice that the database is the wrong one.
QUARANTINE_S = 7 * 86_400.0
_NAMES_AT_ONCE = 500
# The names of jobs and uploads. Other names in their directories are not ours.
_IS_OURS = re.compile(r"[0-9a-f]{32}").fullmatch


class Orphans:
    """The names in a directory that have no row.

    Files are written before their row, within one call, so new ones may still get a row. In object storage, which does
    not know the age of a directory, a name is an orphan once two sweeps in a row have found no row.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        directory: str,
        ids: sa.ColumnElement[str],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """ids: the column with the names that are not orphans. wall_s: Unix time in seconds."""
        self._db, self._files, self._directory, self._ids = database, files, directory, ids
        self._wall_s = wall_s
        self._seen_once: set[str] = set()

    def delete(self, before_s: float) -> int:
        """Move orphans into quarantine, and delete those whose time there is over; return how many were moved.

        before_s: Unix time; newer files are left alone.
        """
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
        due = orphans & (old | self._seen_once)
        self._seen_once = orphans - due
        moved = [name for name in due if self._moved(self._place(name), f"{self._quarantine}/{self._now()}-{name}")]
        if moved:
            log.warning("files without a row are in quarantine", place=self._quarantine, n_names=len(moved))
        return len(moved)

    def _go_through_quarantine(self) -> None:
        """Restore names that have a row again, and delete those that have had none for `QUARANTINE_S`."""
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
            log.warning("orphaned files could not be deleted", path=path)
