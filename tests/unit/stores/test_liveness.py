"""Workers of this machine are alive while they hold a lock, and any worker while its heartbeat changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.harness import REPOSITORY
from typeless_grpc.clock import FakeClock
from typeless_grpc.stores.dbos.liveness import LivenessLock, OwnHeartbeat, PeerHeartbeats, new_worker_id
from typeless_grpc.stores.dbos.recovery import Recovery

HOLDER = """
import sys
from pathlib import Path
from typeless_grpc.stores.dbos.liveness import LivenessLock
lock = LivenessLock(Path(sys.argv[1]), "w1")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_worker_is_dead_once_its_process_is(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not LivenessLock.is_dead(tmp_path, "w1")
        holder.kill()
        holder.wait()
        assert LivenessLock.is_dead(tmp_path, "w1")


def test_a_lock_does_not_show_whether_a_worker_of_another_machine_lives(tmp_path: Path):
    assert not LivenessLock.is_dead(tmp_path, "elsewhere")


def test_a_worker_that_stops_deletes_its_lock(tmp_path: Path):
    lock = LivenessLock(tmp_path, "w1")
    lock.close()
    assert list(tmp_path.iterdir()) == []


def test_every_start_has_an_id_of_its_own():
    assert len({new_worker_id() for _ in range(100)}) == 100


def test_a_worker_trusts_the_silence_of_others_from_its_start():
    clock = FakeClock()
    own = OwnHeartbeat(20.0, clock.now_s)
    own.sent()
    assert own.trusts_silence
    for _ in range(10):
        clock.advance(5.0)
        own.sent()
        assert own.trusts_silence


@pytest.mark.parametrize("has_begun", [True, False], ids=["while it ran", "before its first heartbeat"])
def test_a_worker_that_was_silent_itself_gives_the_others_a_timeout(has_begun: bool):
    clock = FakeClock()
    own = OwnHeartbeat(20.0, clock.now_s)
    if has_begun:
        own.sent()
    clock.advance(60.0)  # the database was unavailable
    own.sent()
    for _ in range(3):
        clock.advance(5.0)
        own.sent()
        assert not own.trusts_silence
    clock.advance(5.0)
    own.sent()
    assert own.trusts_silence


def test_a_worker_is_silent_once_its_heartbeat_has_been_the_same_for_a_timeout():
    clock = FakeClock()
    peers = PeerHeartbeats(20.0, clock.now_s)
    for n in range(5):
        assert peers.silent({"lives": float(n), "died": 7.0}) == ({"died"} if n == 4 else set())
        clock.advance(5.0)
    assert peers.silent({"died": 8.0}) == set()


@pytest.mark.parametrize("step_s", [86_400.0, -86_400.0, 21.0, -21.0])
def test_a_step_of_the_databases_clock_makes_no_worker_silent(step_s: float):
    clock = FakeClock()
    peers = PeerHeartbeats(20.0, clock.now_s)
    written_s = {"w1": 1_000_000.0, "w2": 1_000_001.0}
    for n in range(20):
        assert peers.silent(written_s) == set()
        clock.advance(5.0)
        stepped_s = step_s if n == 10 else 0.0
        written_s = {worker: heartbeat_s + 5.0 + stepped_s for worker, heartbeat_s in written_s.items()}


def test_a_worker_that_is_new_here_has_a_timeout_for_its_next_heartbeat():
    clock = FakeClock(1000.0)
    peers = PeerHeartbeats(20.0, clock.now_s)
    assert peers.silent({"w1": 1.0}) == set()
    clock.advance(20.0)
    assert peers.silent({"w1": 1.0, "w2": 1.0}) == {"w1"}


class Cluster:
    """Workflows and heartbeats of workers, and what recovery did with them."""

    def __init__(self) -> None:
        self.heartbeats = {"w1": 1.0}
        self.holders: set[str] = set()
        self.held_here: set[str] = set()
        self.active_here: set[str] = set()
        self.requeued: list[str] = []
        self.reassigned: list[str] = []

    def workers(self) -> dict[str, float]:
        return dict(self.heartbeats)

    def heartbeat(self, worker_id: str, max_jobs: int) -> None:
        self.heartbeats[worker_id] = self.heartbeats.get(worker_id, 0.0) + 1.0

    def sign_off(self, worker_ids: Collection[str]) -> None:
        for worker in worker_ids:
            self.heartbeats.pop(worker, None)

    def active(self) -> set[str]:
        return set(self.active_here)

    def executors(self) -> set[str]:
        return set(self.holders)

    def held(self) -> set[str]:
        return set(self.held_here)

    def requeue(self, workflow_id: str) -> None:
        self.requeued.append(workflow_id)
        self.held_here.discard(workflow_id)

    def reassign(self, workers: Collection[str]) -> None:
        self.reassigned += sorted(workers)
        self.holders -= set(workers)

    def is_queued(self) -> sa.ColumnElement[bool]:
        return sa.true()


def recovery(cluster: Cluster, locks: Path) -> Recovery:
    own = OwnHeartbeat(20.0)
    return Recovery(cluster, cluster, "w1", own, max_jobs=1, worker_timeout_s=20.0, locks=locks)  # type: ignore[arg-type]


def test_the_jobs_of_a_worker_without_a_heartbeat_are_reassigned_once(tmp_path: Path):
    cluster = Cluster()
    cluster.holders = {"w1", "w2"}
    recovering = recovery(cluster, tmp_path)
    for _ in range(2):
        recovering.heartbeat()
    assert cluster.reassigned == ["w2"]


class WithNewcomer(Cluster):
    """Between two reads of another worker, a worker begins: it sends a heartbeat, then takes a job."""

    def __init__(self) -> None:
        super().__init__()
        self.n_reads = 0

    def _read(self) -> None:
        self.n_reads += 1
        if self.n_reads == 2:
            self.heartbeats["w2"] = 2.0
            self.holders.add("w2")

    def workers(self) -> dict[str, float]:
        self._read()
        return super().workers()

    def executors(self) -> set[str]:
        self._read()
        return super().executors()


def test_a_worker_that_begins_meanwhile_is_not_taken_for_dead(tmp_path: Path):
    cluster = WithNewcomer()
    recovery(cluster, tmp_path).reassign_jobs_of_the_dead()
    assert (cluster.n_reads, cluster.reassigned) == (2, [])


def test_a_job_that_is_held_and_not_run_is_queued_again_at_the_second_heartbeat(tmp_path: Path):
    cluster = Cluster()
    cluster.held_here, cluster.active_here = {"runs", "idle"}, {"runs"}
    recovering = recovery(cluster, tmp_path)
    recovering.heartbeat()
    assert cluster.requeued == []
    cluster.held_here.add("new")
    recovering.heartbeat()
    assert cluster.requeued == ["idle"]
