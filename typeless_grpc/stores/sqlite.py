"""What both databases need of SQLite."""

from __future__ import annotations

import sqlite3
import time

RETRY_S = 0.02


def use_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Let readers and a writer of several processes work at the same time.

    Two connections that switch at once do not wait for each other, whatever their timeout: SQLite refuses one of them.
    So a refused one tries again for timeout_s. Raises sqlite3.OperationalError.
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
