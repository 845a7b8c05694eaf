"""SQLite settings for both databases."""

from __future__ import annotations

import sqlite3
import time

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
