"""The short form of `make hardening`, for CI: the same trials, with bounds that hold on a busy machine."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from tests.hardening import leaks, load
from tests.hardening.parts import LEAK_SLOWDOWN
from tests.hardening.report import BEGIN, END, Row, Table, write
from tests.hardening.server import running

N_CALLS = 400
FLOOD_S, QUIET_S = 8.0, 3.0
SLOWDOWN = 1.0
TIMES = 4.0


@pytest.mark.system
def test_calls_that_break_leave_nothing_behind(tmp_path: Path):
    with running(tmp_path, slowdown=LEAK_SLOWDOWN, **leaks.SETTINGS) as server:
        done = asyncio.run(leaks.run(server, N_CALLS))
    assert done.failures == []
    assert done.n_broken > N_CALLS / 4
    assert done.left_behind() == {}, done.after


@pytest.mark.system
def test_a_flood_costs_those_who_are_accepted_nothing(tmp_path: Path):
    with running(tmp_path, slowdown=SLOWDOWN, max_concurrent_calls=24) as server:
        done = asyncio.run(load.run(server, FLOOD_S, quiet_s=QUIET_S, times=TIMES))
    assert not done.answers.lost
    assert done.answers.n_refused > done.answers.n_answered
    assert set(done.answers.refused) <= {"OVERLOADED", "SHARE_USED_UP", "BATCH", "DEADLINE_CANNOT_BE_MET"}
    assert statistics.median(done.answers.refused_s) < 0.5
    assert (done.n_finals_missing, done.stream_failures) == (0, [])
    assert (done.n_jobs > 0, done.n_jobs_lost) == (True, 0)
    assert done.goodput > 0.5 * done.peak


def test_tables_are_replaced_one_by_one(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n\n{END}\n\nafter\n")
    first, second = Table("One", [Row("calls", "1")]), Table("Two", [Row("lost", "0", "0", True)])
    write([first, second], "2 cores", page)
    write([Table("One", [Row("calls", "9", "under 5", False)])], "4 cores", page)
    text = page.read_text()
    assert (text[:8], text[-8:]) == ("before\n\n", "\n\nafter\n")
    assert "| calls | 1 |" not in text
    assert (
        "### One\n\nMeasured on 4 cores.\n\n| What | Measured | Bound |\n| --- | --- | --- |\n| calls | 9 | under 5 |"
        in text
    )
    assert "### Two\n\nMeasured on 2 cores." in text
    assert (first.problems, second.problems) == ([], [])
