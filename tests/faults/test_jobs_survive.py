"""No job is lost when processes are killed or frozen, the database is unavailable, or the disk is full."""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.faults.conftest import (
    PCM,
    WORKER_TIMEOUT_S,
    Cluster,
    check_once,
    check_whole,
    ended,
    events_of,
    submit,
    wait_until,
)
from tests.faults.node import POISON, SHORT, recording
from tests.postgres import Postgres
from typeless_grpc.client import CallFailed, Client, Jobs, RetryPolicy
from typeless_grpc.pb.v1 import jobs_pb2

pytestmark = pytest.mark.timeout(400)


def test_fifty_jobs_survive_the_death_of_the_only_process(cluster: Cluster):
    # Its lock shows that it is dead: its jobs do not wait for the timeout of heartbeats.
    node = cluster.start(worker_timeout_s=3600.0)
    ids = submit(node, range(1, 51))
    wait_until(lambda: cluster.n_done() > 40)
    node.kill()
    successor = cluster.start(successor_of=node, worker_timeout_s=3600.0)
    jobs = ended(successor, ids)
    for number, job in jobs.items():
        check_whole(job, number)
    check_once(cluster, ids, n_crashes=1)
    assert any(job.attempt == 2 for job in jobs.values())


def test_200_jobs_over_two_workers_survive_the_death_of_one(cluster: Cluster):
    server = cluster.start(max_concurrent_jobs=0)
    first, second = cluster.start(max_concurrent_jobs=8), cluster.start(max_concurrent_jobs=8)
    ids = submit(server, range(101, 301), seconds=5)
    wait_until(lambda: cluster.n_done() > 100)
    first.kill()
    wait_until(lambda: "jobs of dead workers are reassigned" in events_of(second), timeout_s=30.0)
    jobs = ended(server, ids)
    for number, job in jobs.items():
        check_whole(job, number, seconds=5)
    check_once(cluster, ids, n_crashes=1)
    assert not second.has_ended


def test_a_worker_that_was_frozen_does_not_overwrite_its_successor(cluster: Cluster):
    server = cluster.start(max_concurrent_jobs=0)
    frozen, _ = cluster.start(max_concurrent_jobs=4), cluster.start(max_concurrent_jobs=1)
    ids = submit(server, range(1, 25))
    wait_until(lambda: cluster.n_done() > 6)
    frozen.signal(signal.SIGSTOP)
    with contextlib.suppress(AssertionError):  # it may have been frozen in a write, which holds up a SQLite file
        ended(server, ids, timeout_s=4 * WORKER_TIMEOUT_S)
    frozen.signal(signal.SIGCONT)
    jobs = ended(server, ids)
    time.sleep(1.0)  # so that the thawed worker does what it still had to do
    assert {number: job.transcript for number, job in ended(server, ids).items()} == {
        number: job.transcript for number, job in jobs.items()
    }
    for number, job in jobs.items():
        check_whole(job, number)
    check_once(cluster, ids, n_crashes=1)


def test_a_poison_job_fails_and_harms_no_other(cluster: Cluster):
    server = cluster.start(max_concurrent_jobs=0)  # the poison job must not crash it while others are submitted
    ids = submit(server, range(POISON - 3, POISON + 4))
    server.signal(signal.SIGTERM)
    server.wait(30)
    node = cluster.start(successor_of=server)
    for _ in range(10):
        wait_until(lambda: node.has_ended or _none_left(node), timeout_s=60)  # noqa: B023
        if not node.has_ended:
            break
        node = cluster.start(successor_of=node)
    jobs = ended(node, ids)
    poison = jobs.pop(POISON)
    assert poison.state == jobs_pb2.JOB_STATE_FAILED
    assert (poison.failure.reason, poison.attempt) == ("JOB_CRASHED", 3)
    assert cluster.n_started == 1 + 4
    for number, job in jobs.items():
        check_whole(job, number)


def _none_left(node: object) -> bool:
    with contextlib.suppress(CallFailed), grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:  # type: ignore[attr-defined]
        stats = Jobs(channel, RetryPolicy(max_attempts=1)).stats()
        return stats.pending + stats.processing == 0
    return False


def test_a_restart_of_postgresql_loses_nothing(postgres: Postgres, tmp_path: Path):
    cluster = Cluster(tmp_path, postgres.empty_database())
    try:
        server, _ = cluster.start(max_concurrent_jobs=0), cluster.start(max_concurrent_jobs=3)
        ids = submit(server, range(1, 31))
        wait_until(lambda: cluster.n_done() > 20)
        postgres.stop("immediate")
        try:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(CallFailed) as caught:
                Jobs(channel, RetryPolicy(max_attempts=1)).submit(recording(99, 5), raw_format=PCM)
            time.sleep(1.0)
        finally:
            postgres.start()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert (caught.value.reason, caught.value.retry_after_s) == ("STORE_UNAVAILABLE", 1.0)
        for number, job in ended(server, ids).items():
            check_whole(job, number)
        check_once(cluster, ids, n_crashes=1)
    finally:
        cluster.stop()


def test_a_locked_sqlite_file_loses_nothing(tmp_path: Path):
    cluster = Cluster(tmp_path, f"sqlite:///{tmp_path}/jobs.db", SHORT)
    try:
        node = cluster.start()
        ids = submit(node, range(1, 13))
        wait_until(lambda: cluster.n_done() > 10)
        lock = sqlite3.connect(tmp_path / "jobs.db", timeout=30, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel, pytest.raises(CallFailed) as caught:
            Jobs(channel, RetryPolicy(max_attempts=1)).submit(recording(99, 5), raw_format=PCM)
        lock.execute("ROLLBACK")
        lock.close()
        assert caught.value.reason == "STORE_UNAVAILABLE"
        for number, job in ended(node, ids).items():
            check_whole(job, number)
        check_once(cluster, ids, n_crashes=1)
    finally:
        cluster.stop()


@contextlib.contextmanager
def no_file_grows(pid: int) -> Iterator[None]:
    """Let no file of a running process grow."""
    process = psutil.Process(pid)
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Fill a file system up to its last byte."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB; skips where none can be mounted."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def test_files_that_cannot_grow_lose_nothing_that_was_accepted(tmp_path: Path):
    check_full(Cluster(tmp_path, f"sqlite:///{tmp_path}/jobs.db"), None)


def test_a_full_disk_loses_nothing_that_was_accepted(small_disk: Path):
    check_full(Cluster(small_disk, f"sqlite:///{small_disk}/jobs.db"), small_disk)


def check_full(cluster: Cluster, disk: Path | None) -> None:
    try:
        node = cluster.start()
        ids = submit(node, range(1, 13))
        wait_until(lambda: cluster.n_done() > 10)
        # The journal of the engines may be on the full disk as well; it is read before or after.
        with full_disk(disk) if disk else no_file_grows(node.pid):
            with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel, pytest.raises(CallFailed) as caught:
                Jobs(channel, RetryPolicy(max_attempts=1)).submit(recording(99, 5), raw_format=PCM)
            time.sleep(2.0)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason in ("STORAGE_FULL", "STORE_UNAVAILABLE")
        assert caught.value.retry_after_s
        assert not node.has_ended
        for number, job in ended(node, ids).items():
            check_whole(job, number)
        with Client(f"127.0.0.1:{node.port}") as client:
            assert len(list(client.jobs.list())) == len(ids)
            assert client.jobs.wait(client.jobs.submit(recording(99, 5), raw_format=PCM).job_id).progress == 1.0
    finally:
        cluster.stop()


def test_jobs_of_a_stopping_server_are_reassigned_at_once(cluster: Cluster):
    server = cluster.start(max_concurrent_jobs=0)
    leaving = cluster.start(max_concurrent_jobs=3, worker_timeout_s=3600.0)
    ids = submit(server, range(1, 10))
    wait_until(lambda: cluster.n_done() > 3)
    cluster.start(max_concurrent_jobs=3)
    leaving.signal(signal.SIGTERM)
    assert leaving.wait(60) == 0
    for number, job in ended(server, ids).items():
        check_whole(job, number)
    check_once(cluster, ids, n_crashes=1)
