from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from typeless_grpc.clock import FakeClock
from typeless_grpc.stores.causes import Causes


def test_a_cause_is_logged_when_it_changes_and_once_a_minute(caplog: pytest.LogCaptureFixture):
    clock = FakeClock()
    causes = Causes("jobs", clock.now_s)
    for why in ("disk I/O error", "disk I/O error", "database disk image is malformed"):
        causes.note(OperationalError("SELECT secret", ("value",), sqlite3.OperationalError(f"{why}\nmore")))
        clock.advance(2)
    assert [why in caplog.text for why in ("disk I/O error", "malformed", "secret", "value", "more")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert len(caplog.records) == 2
    clock.advance(61)
    causes.note(OperationalError("SELECT", (), sqlite3.OperationalError("database disk image is malformed")))
    causes.note(OSError(30, "Read-only file system", "/jobs/1"))
    clock.advance(2)
    causes.note(OSError(30, "Read-only file system", "/jobs/2"))
    assert len(caplog.records) == 4
