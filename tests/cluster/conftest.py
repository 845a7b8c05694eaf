"""One installation for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.installation import Installation
from tests.cluster.load import Numbers
from tests.cluster.network import ISOLATED
from tests.harness import REPOSITORY

LOGS = REPOSITORY / ".cache" / "cluster"  # after a failure
MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Installation]:
    if ISOLATED not in os.environ:
        pytest.skip("these tests need network namespaces of their own: make cluster-test")
    shutil.rmtree(LOGS, ignore_errors=True)
    directory = tmp_path_factory.mktemp("cluster")
    running = Installation(directory)
    try:
        running.start()
        yield running
    finally:
        if request.session.testsfailed or not all(node.is_running for node in running.nodes.values()):
            _keep(directory)
        running.stop()


def _keep(directory: Path) -> None:
    LOGS.mkdir(parents=True)
    for path in (*directory.glob("*.log"), *directory.glob("*.txt"), directory / "journal"):
        if path.exists():
            shutil.copy(path, LOGS)


@pytest.fixture(scope="session")
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are shown at the end."""
    return request.config.stash.setdefault(MEASURED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(MEASURED, []):
        terminalreporter.write_line(line)
    if LOGS.exists():
        terminalreporter.write_line(f"The logs of all machines: {LOGS}")
