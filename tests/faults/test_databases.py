"""A database that is deleted, replaced, damaged or restored: what was accepted is kept, or its loss is reported."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from tests.faults.conftest import PCM, Cluster, Node, check_whole, ended, submit, wait_until
from tests.faults.node import recording
from typeless_grpc.client import CallFailed, Client, Jobs, RetryPolicy
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.stores.database import Database, sqlite_url

pytestmark = pytest.mark.timeout(400)


@contextmanager
def jobs_of(node: Node) -> Iterator[Jobs]:
    """Calls without retries."""
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        yield Jobs(channel, RetryPolicy(max_attempts=1))


def failure_of(node: Node, call: Callable[[Jobs], object]) -> str:
    with jobs_of(node) as jobs, pytest.raises(CallFailed) as caught:
        call(jobs)
    return caught.value.reason


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path, sqlite_url(tmp_path / "jobs.db"))
    yield running
    running.stop()


def files_of(cluster: Cluster) -> list[Path]:
    return sorted(cluster.directory.glob("jobs.db*"))


def copy_of(cluster: Cluster) -> Path:
    """Return a copy of a SQLite file, made as `sqlite3 jobs.db .backup` makes it."""
    copy = cluster.directory / "yesterday.db"
    with closing(sqlite3.connect(cluster.directory / "jobs.db")) as live, closing(sqlite3.connect(copy)) as backup:
        live.backup(backup)
    return copy


def test_a_deleted_database_accepts_nothing_more(sqlite: Cluster):
    node = sqlite.start()
    ended(node, submit(node, range(1, 3)))
    copy = copy_of(sqlite)
    for file in files_of(sqlite):
        file.unlink()
    for call in (lambda jobs: jobs.submit(recording(9, 5), raw_format=PCM), lambda jobs: list(jobs.list())):
        assert failure_of(node, call) == "STORE_UNAVAILABLE"
    assert files_of(sqlite) == []
    copy.replace(sqlite.directory / "jobs.db")
    for number, job in ended(node, submit(node, range(3, 5))).items():
        check_whole(job, number)


def test_a_replaced_database_keeps_what_is_accepted_after_it(sqlite: Cluster):
    node = sqlite.start()
    ended(node, submit(node, range(1, 3)))
    copy_of(sqlite).replace(sqlite.directory / "jobs.db")
    for suffix in ("-wal", "-shm"):
        (sqlite.directory / f"jobs.db{suffix}").unlink(missing_ok=True)
    ids = submit(node, range(3, 5))
    node.kill()
    successor = sqlite.start(successor_of=node)
    for number, job in ended(successor, ids).items():
        check_whole(job, number)
    with Client(f"127.0.0.1:{successor.port}") as client:
        assert len(list(client.jobs.list())) == 4


def test_a_damaged_database_stops_jobs_alone_and_says_why(sqlite: Cluster):
    node = sqlite.start()
    ids = submit(node, range(1, 3))
    before = ended(node, ids)
    copy = copy_of(sqlite)
    file = sqlite.directory / "jobs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(os.urandom(file.stat().st_size - 4096))
    assert failure_of(node, lambda jobs: jobs.submit(recording(9, 5), raw_format=PCM)) == "STORE_UNAVAILABLE"
    wait_until(lambda: "malformed" in node.log.read_text(), timeout_s=10)
    with Client(f"127.0.0.1:{node.port}") as client:
        assert client.transcribe(recording(5, 2), raw_format=PCM).transcript.segments[0].text == "5:0"
    node.signal(signal.SIGTERM)
    assert node.wait(60) == 0
    for each in files_of(sqlite):
        each.unlink()
    shutil.copy(copy, file)
    successor = sqlite.start(successor_of=node)
    after = ended(successor, ids | submit(successor, range(3, 5)))
    assert {number: after[number].transcript for number in ids} == {number: before[number].transcript for number in ids}


def test_connections_to_a_replaced_file_are_given_up(tmp_path: Path):
    path = tmp_path / "jobs.db"
    database = Database(sqlite_url(path))
    database.create_tables()
    shutil.copy(path, tmp_path / "copy")
    path.unlink()
    with pytest.raises(SourceUnavailable):
        database.probe()
    assert not path.exists()
    (tmp_path / "copy").replace(path)
    database.probe()
    database.close()


# ---- restored from yesterday -------------------------------------------------------------------------------------


class Backup:
    """A copy of the database of a cluster, restored while its servers run."""

    def __init__(self, cluster: Cluster) -> None:
        self._url, self._file = cluster.database_url, cluster.directory / "backup"
        if self._is_sqlite:
            copy_of(cluster).replace(self._file)
        else:
            self._run("pg_dump", "--clean", "--if-exists", "-f", str(self._file))

    def restore(self) -> None:
        if self._is_sqlite:
            live = sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=30)
            with closing(sqlite3.connect(self._file)) as copy, closing(live):
                copy.backup(live)
        else:
            while not self._is_restored():
                pass

    def _is_restored(self) -> bool:
        """Try it; False if PostgreSQL ended it, among the transactions of the servers, because of a deadlock."""
        try:
            self._run("psql", "-q", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-f", str(self._file))
        except subprocess.CalledProcessError as error:
            if "deadlock detected" in error.stderr:
                return False
            error.add_note(error.stderr)
            raise
        return True

    @property
    def _is_sqlite(self) -> bool:
        return self._url.startswith("sqlite:")

    def _run(self, *command: str) -> None:
        subprocess.run([*command, "-d", self._url], check=True, capture_output=True, timeout=60, text=True)


def test_a_database_of_yesterday_runs_what_it_knows_and_forgets_the_rest(cluster: Cluster):
    server = cluster.start(max_concurrent_jobs=0)
    worker = cluster.start(max_concurrent_jobs=3)
    old = submit(server, range(1, 4))
    done = ended(server, old)
    worker.signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    pending = submit(server, range(4, 6))
    backup = Backup(cluster)
    cluster.start(successor_of=worker, max_concurrent_jobs=3)
    ended(server, pending)
    lost = submit(server, range(6, 8))
    ended(server, lost)

    backup.restore()
    again = submit(server, range(6, 8))
    jobs = ended(server, old | pending | again)
    assert {number: jobs[number].transcript for number in old} == {
        number: job.transcript for number, job in done.items()
    }
    for number in again:
        assert again[number] != lost[number]
        check_whole(jobs[number], number)
        assert failure_of(server, lambda jobs: jobs.get(lost[number])) == "JOB_NOT_FOUND"  # noqa: B023
    for number in pending:
        assert jobs[number].state == jobs_pb2.JOB_STATE_FAILED
        assert jobs[number].failure.reason == "AUDIO_NOT_FOUND"
