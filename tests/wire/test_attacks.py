"""The known attacks, one test for each: other callers notice little, and nothing is left afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.wire.attack import TRANSCRIBE, recording
from tests.wire.attacks import ATTACKS
from tests.wire.http2 import PREFACE, headers_of, settings
from tests.wire.node import HOSTILE
from tests.wire.server import Attacked, attacked

ATTACK_S = 0.3
# On a machine where other tests run at the same time. docs/reliability.md has what a quiet one measures.
LONGEST_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked(tmp_path_factory.mktemp("wire")) as running:
        yield running


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody_else(server: Attacked, name: str):
    end_s = time.monotonic() + ATTACK_S
    with server.witnessed() as testimony:
        n_inputs = ATTACKS[name](server.port, lambda: time.monotonic() > end_s)
    assert n_inputs > 0
    assert not testimony.complaints
    assert {"unary", "newcomer", "live", "completed"} <= set(testimony.latencies_s)
    assert testimony.longest_s() < LONGEST_S
    assert not server.problems()
    assert not server.settled()


def test_calls_whose_answers_are_never_read_count_as_open_calls_of_their_caller(server: Attacked):
    call = headers_of(TRANSCRIBE, key=HOSTILE)
    with server.witnessed() as testimony, server.peer(begin=PREFACE + settings(INITIAL_WINDOW_SIZE=0)) as deaf:
        refused = [deaf.call(call, recording()) for _ in range(40)][-1]
        assert deaf.answer(refused).text.startswith("The quota is used up: 32 concurrent calls")
        with server.peer() as other:
            assert other.answer(other.call(call, recording())).status == 8
    assert not testimony.complaints
    assert not server.settled()
    with server.peer() as other:
        assert other.answer(other.call(call, recording())).status == 0
