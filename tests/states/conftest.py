"""Counts what the machines and schedules run, and prints it in one line of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.states.databases import Folder, opened
from tests.states.machines import CountedMachine, factor
from tests.states.seeded import Explored


def counts() -> Counter[str]:
    return Counter(examples=CountedMachine.n_examples, steps=CountedMachine.n_steps, schedules=Explored.n_schedules)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with opened(tmp_path) as one:
        yield one


@pytest.fixture(autouse=True)
def what_is_run_is_counted(record_property: Callable[[str, object], None]) -> Iterator[None]:
    before = counts()
    yield
    record_property("states", dict(counts() - before))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long form its time."""
    for item in items:
        if item.path.parent == Path(__file__).parent and factor() > 1:
            item.add_marker(pytest.mark.timeout(3600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums, those of other processes included."""
    sums = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                sums.update(dict(report.user_properties).get("states", {}))
    if sums:
        terminalreporter.write_line(json.dumps({"states": dict(sums)}))
