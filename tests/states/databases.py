"""A database whose clock a test sets: both the one that may step, and the one of this machine that never does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from typeless_grpc.clock import FakeClock
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.steady import SteadyClock

T0_S = 1_800_000_000.0


class ClockedDatabase(Database):
    """clock: time that passes. step_s: what somebody has set the database's clock ahead, or back."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.clock, self.step_s = FakeClock(T0_S), 0.0
        self._clock = SteadyClock(self.clock.now_s)

    def now_s(self) -> sa.ColumnElement[float]:
        return sa.literal(self.clock.now_s() + self.step_s, sa.Double)


class Folder:
    """Where the examples of a machine keep their stores. All share one database, each with owners of its own."""

    def __init__(self, folder: Path) -> None:
        self.database = ClockedDatabase(sqlite_url(folder / "jobs.db"))
        self.database.create_tables()
        self.files = Files(str(folder / "storage"))
        self.n_owners = 0

    def owner(self) -> str:
        self.n_owners += 1
        return f"owner {self.n_owners}"


@contextmanager
def opened(folder: Path) -> Iterator[Folder]:
    one = Folder(folder)
    yield one
    one.database.close()
