"""A worker of this machine shows that it lives by a lock, which no dead process can hold; any worker by its beats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness import REPOSITORY
from typeless_grpc.clock import FakeClock
from typeless_grpc.stores import dbos_worker
from typeless_grpc.stores.dbos_worker import (
    Beats,
    DbosWorker,
    DbosWorkerOptions,
    Heartbeats,
    SignOfLife,
    new_worker_id,
)

UNTOUCHED: Any = object()
HOLDER = """
import sys
from pathlib import Path
from typeless_grpc.stores.dbos_worker import SignOfLife
sign = SignOfLife(Path(sys.argv[1]), "w1")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_worker_is_dead_once_its_process_is(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not SignOfLife.is_dead(tmp_path, "w1")
        holder.kill()
        holder.wait()
        assert SignOfLife.is_dead(tmp_path, "w1")


def test_of_a_worker_of_another_machine_nothing_is_known(tmp_path: Path):
    assert not SignOfLife.is_dead(tmp_path, "elsewhere")


def test_a_worker_that_leaves_takes_its_sign_along(tmp_path: Path):
    sign = SignOfLife(tmp_path, "w1")
    sign.close()
    assert list(tmp_path.iterdir()) == []


def test_every_start_has_an_id_of_its_own():
    assert len({new_worker_id() for _ in range(100)}) == 100


def test_a_worker_judges_others_from_the_start():
    clock = FakeClock()
    beats = Beats(20.0, clock.now_s)
    beats.note()
    assert beats.can_judge
    for _ in range(10):
        clock.advance(5.0)
        beats.note()
        assert beats.can_judge


def test_whoever_was_silent_itself_gives_the_others_time_to_be_heard_of():
    clock = FakeClock()
    beats = Beats(20.0, clock.now_s)
    beats.note()
    clock.advance(60.0)  # the database was away
    beats.note()
    for _ in range(3):
        clock.advance(5.0)
        beats.note()
        assert not beats.can_judge
    clock.advance(5.0)
    beats.note()
    assert beats.can_judge


def test_a_worker_is_silent_once_its_heartbeat_has_been_the_same_for_a_timeout():
    clock = FakeClock()
    heartbeats = Heartbeats(20.0, clock.now_s)
    for n in range(5):
        assert heartbeats.silent({"lives": float(n), "died": 7.0}) == ({"died"} if n == 4 else set())
        clock.advance(5.0)
    assert heartbeats.silent({"died": 8.0}) == set()


@pytest.mark.parametrize("leap_s", [86_400.0, -86_400.0, 21.0, -21.0])
def test_a_database_whose_clock_was_set_makes_nobody_silent(leap_s: float):
    clock = FakeClock()
    heartbeats = Heartbeats(20.0, clock.now_s)
    written_s = {"w1": 1_000_000.0, "w2": 1_000_001.0}
    for n in range(20):
        assert heartbeats.silent(written_s) == set()
        clock.advance(5.0)
        leapt_s = leap_s if n == 10 else 0.0
        written_s = {one: beat_s + 5.0 + leapt_s for one, beat_s in written_s.items()}


def test_a_worker_that_is_new_here_has_a_timeout_to_be_heard_of():
    clock = FakeClock(1000.0)
    heartbeats = Heartbeats(20.0, clock.now_s)
    assert heartbeats.silent({"w1": 1.0}) == set()
    clock.advance(20.0)
    assert heartbeats.silent({"w1": 1.0, "w2": 1.0}) == {"w1"}


class BeginsLate(DbosWorker):
    """A worker that the database keeps waiting for a minute, and that then does nothing."""

    def __init__(self, clock: FakeClock, directory: Path) -> None:
        options = DbosWorkerOptions(1, 0.1, worker_timeout_s=20.0, locks=directory)
        super().__init__(UNTOUCHED, UNTOUCHED, UNTOUCHED, options)
        self._clock = clock
        self._beats = Beats(20.0, clock.now_s)

    def _try_to_begin(self) -> None:
        self._clock.advance(60.0)
        self._dbos = UNTOUCHED

    def _keep(self) -> None: ...


def test_a_worker_whose_start_was_delayed_gives_the_others_time_to_be_heard_of(tmp_path: Path):
    clock = FakeClock()
    late = BeginsLate(clock, tmp_path)
    late.start()
    dbos_worker._only_one.release()
    late._beats.note()
    assert not late._beats.can_judge
    clock.advance(20.0)
    assert late._beats.can_judge


class Newcomer:
    """A worker that begins while another one looks at who works: it says that it lives, then takes a job."""

    def __init__(self) -> None:
        self.n_looks = 0

    def _come(self) -> bool:
        self.n_looks += 1
        return self.n_looks > 1

    def workers(self) -> dict[str, float]:
        return {"w1": 1.0} | ({"w2": 2.0} if self._come() else {})

    def executors(self) -> set[str]:
        return {"w2"} if self._come() else set()

    def sign_off(self, worker_ids: Collection[str]) -> None:
        raise AssertionError(f"{sorted(worker_ids)} are alive")


def test_a_worker_that_begins_meanwhile_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    newcomer = Newcomer()
    options = DbosWorkerOptions(1, 0.1, worker_timeout_s=20.0, locks=tmp_path)
    looking = DbosWorker(UNTOUCHED, newcomer, SimpleNamespace(worker_id="w1"), options)  # type: ignore[arg-type]
    looking._dbos = UNTOUCHED
    monkeypatch.setattr(looking, "_executors", newcomer.executors)
    looking._take_over()
    assert newcomer.n_looks == 2
