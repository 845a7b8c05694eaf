"""Random and broken connections: the server goes on, and no status comes from an exception."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.wire.mutations import is_exception, played, script
from tests.wire.server import Attacked, attacked

N_SEEDS = 400
FIRST_SEED = int(os.environ.get("WIRE_SEED", "19"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked(tmp_path_factory.mktemp("wire")) as running:
        yield running


def test_mutated_connections_harm_nobody(server: Attacked):
    with server.witnessed() as testimony, ThreadPoolExecutor(8) as threads:
        scripts = [script(FIRST_SEED * 1_000_000_000 + n) for n in range(N_SEEDS)]
        outcomes = list(threads.map(lambda one: (one, played(server.port, one)), scripts))
    bad = [f"{wrong}\n{one.describe()}" for one, wrong in outcomes if wrong]
    assert not bad, bad[0]
    assert not server.problems(), f"seeds from {FIRST_SEED * 1_000_000_000}: {server.problems()[0]}"
    assert not testimony.complaints
    assert not server.settled()


def test_a_seed_gives_the_same_connection():
    assert script(7) == script(7)
    assert script(7) != script(8)


def test_the_statuses_of_exceptions_are_found():
    assert is_exception(2, "Unexpected <class 'ValueError'>: x")
    assert is_exception(13, "Internal error. The server's log has the details under request id 1.")
    assert not is_exception(3, "config: must be the first request")
    assert not is_exception(None, "")
