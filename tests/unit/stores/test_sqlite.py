from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from typeless_grpc.stores.sqlite import use_wal


def locked(path: Path) -> sqlite3.Connection:
    """A connection that keeps others from changing the journal."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE one (id)")
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_refused_switch_is_tried_again(tmp_path: Path):
    holder = locked(tmp_path / "db")
    timer = threading.Timer(0.2, lambda: holder.execute("COMMIT"))
    timer.start()
    connection = sqlite3.connect(tmp_path / "db", timeout=0)
    use_wal(connection, 10.0)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    timer.join()
    connection.close()
    holder.close()


def test_it_is_not_tried_for_ever(tmp_path: Path):
    holder = locked(tmp_path / "db")
    connection = sqlite3.connect(tmp_path / "db", timeout=0)
    began_s = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_wal(connection, 0.1)
    assert time.monotonic() - began_s < 5
    connection.close()
    holder.close()
