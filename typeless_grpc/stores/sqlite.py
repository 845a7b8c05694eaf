"""SQLite settings for both databases."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any

import sqlalchemy as sa

RETRY_S = 0.02


def use_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Enable the write-ahead log, so that readers and a writer of several processes work at the same time.

    If two connections enable it at once, SQLite refuses one, whatever its timeout. So a refused one is retried for
    timeout_s. Raises sqlite3.OperationalError.
    """
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= ends_s:
                raise
            time.sleep(RETRY_S)
        else:
            return


def follow_file(engine: sa.Engine) -> None:
    """Give up connections to a file that was deleted or replaced: what they write would be lost at the next start.

    Once a connection was opened, no new file is created in the place of a missing one: connecting fails.
    """
    path = engine.url.database
    if not path or path == ":memory:":
        return
    has_been_there = False

    @sa.event.listens_for(engine, "do_connect")
    def connect(*_: Any) -> None:
        if has_been_there and not os.path.exists(path):
            raise sqlite3.OperationalError("the database file is missing")

    @sa.event.listens_for(engine, "connect")
    def note(_connection: Any, record: Any) -> None:
        nonlocal has_been_there
        has_been_there = True
        record.info["file"] = _identity(path)

    @sa.event.listens_for(engine, "checkout")
    def check(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["file"] != _identity(path):
            raise sa.exc.DisconnectionError("the database file was replaced")


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from another in its place; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
