"""Several processes over one database, to be killed, frozen and starved."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.faults import node as nodes
from tests.faults.node import recording
from typeless_grpc.client import CallFailed, Client, RawFormat
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.stores.postgresql import TIMEOUTS, DatabaseTimeouts

PCM = RawFormat("pcm_s16le", 16_000)
TIMEOUT_S = 150.0
SECONDS = 8  # of each job's audio: three chunks
# Long enough for the heartbeats of a live worker on a busy machine.
WORKER_TIMEOUT_S = 4.0

# Nodes are forked from a process that has imported everything and has no threads: imports take seconds of a core.
FORKSERVER = multiprocessing.get_context("forkserver")
# Nodes of their own environment are not forked.
SPAWNED = multiprocessing.get_context("spawn")
FORKSERVER.set_forkserver_preload(
    ["tests.faults.node", "dbos", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "fsspec.implementations.local"]
)


@dataclass
class Node:
    """A process of the product. directory: its own, as on a machine of its own."""

    process: BaseProcess
    port: int
    log: Path
    directory: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Return the exit status of the process, once it has ended."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "it has not ended in time"
        return self.process.exitcode

    @property
    def has_ended(self) -> bool:
        return not self.process.is_alive()


@dataclass
class Cluster:
    """Nodes that share a database and a storage. journal: what their engines have begun and done."""

    directory: Path
    database_url: str
    timeouts: DatabaseTimeouts = TIMEOUTS
    nodes: list[Node] = field(default_factory=list)
    n_started: int = 0

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def start(
        self, *, successor_of: Node | None = None, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> Node:
        """Start a node, or start one again that has ended; return once it accepts calls.

        environment: variables of the node alone, which must be there when its program starts.
        """
        self.n_started += 1
        own = successor_of.directory if successor_of else self.directory / f"node-{self.n_started}"
        own.mkdir(exist_ok=True)
        shared = {
            "database_url": self.database_url,
            "storage_url": str(self.directory / "storage"),
            "worker_timeout_s": WORKER_TIMEOUT_S,
        }
        log = own / f"log-{self.n_started}"
        processes: Any = SPAWNED if environment else FORKSERVER
        receiver, sender = processes.Pipe(duplex=False)
        args = (own, self.journal, log, shared | settings, self.timeouts, sender)
        process = processes.Process(target=nodes.run, args=args)
        with changed_environment(environment or {}):
            process.start()
        sender.close()
        with receiver:
            try:
                port = receiver.recv()
            except EOFError:
                pytest.fail(f"the node did not start: {log.read_text()}")
        node = Node(process, port, log, own)
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        for node in self.nodes:
            if not node.has_ended:
                node.signal(signal.SIGCONT)
                node.kill()
            node.process.close()

    # ---- what happened ----

    def began(self) -> Counter[tuple[int, int]]:
        """Return how often the engines began each chunk, by job and second."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return Counter((int(line.split()[0]), int(line.split()[1])) for line in lines if not line.endswith("done"))

    def n_done(self) -> int:
        """Return the number of chunks that an engine has done."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return sum(line.endswith("done") for line in lines)

    def completions(self) -> Counter[str]:
        """Return how often each job was completed, by the logs of all nodes."""
        events = [event for node in self.nodes for event in events_of(node)]
        return Counter(event.split()[1] for event in events if event.startswith("job ") and " completed in " in event)


@contextlib.contextmanager
def changed_environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def events_of(node: Node) -> list[str]:
    """Return what a node has logged so far."""
    lines = [line for line in node.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [json.loads(line)["event"] for line in lines]


@pytest.fixture(params=["sqlite", "postgresql"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/jobs.db"
    else:
        url = request.getfixturevalue("postgres").empty_database()
    running = Cluster(tmp_path, url)
    yield running
    running.stop()


def submit(node: Node, numbers: range, seconds: int = SECONDS) -> dict[int, str]:
    """Submit jobs of these numbers; return their ids."""
    with Client(f"127.0.0.1:{node.port}") as client:
        return {
            number: client.jobs.submit(recording(number, seconds), raw_format=PCM, request_id=f"job {number}").job_id
            for number in numbers
        }


def wait_until(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def ended(node: Node, ids: dict[int, str], timeout_s: float = TIMEOUT_S) -> dict[int, jobs_pb2.Job]:
    """Return all jobs once they have ended."""
    with Client(f"127.0.0.1:{node.port}") as client:

        def none_left() -> bool:
            with contextlib.suppress(CallFailed):
                stats = client.jobs.stats()
                return stats.pending + stats.processing == 0 and stats.total >= len(ids)
            return False

        wait_until(none_left, timeout_s)
        return {number: client.jobs.get(job_id) for number, job_id in ids.items()}


def check_whole(job: jobs_pb2.Job, number: int, seconds: int = SECONDS) -> None:
    """The job is COMPLETED, and all of its audio is in its transcript once, in order."""
    assert job.state == jobs_pb2.JOB_STATE_COMPLETED, job
    assert job.audio_duration.ToTimedelta().total_seconds() == seconds
    offset_s = 0.0
    for segment in job.transcript.segments:
        assert segment.start_offset.ToTimedelta().total_seconds() == pytest.approx(offset_s, abs=1e-4)
        assert segment.text == f"{number}:{int(offset_s)}"
        offset_s = segment.end_offset.ToTimedelta().total_seconds()
    assert offset_s == seconds


def check_once(cluster: Cluster, ids: dict[int, str], *, n_crashes: int) -> None:
    """No job was completed twice, and each crash repeated at most one chunk of each job."""
    completions = cluster.completions()
    assert max(completions.values()) == 1
    repeated = Counter(job for (job, _), n in cluster.began().items() for _ in range(n - 1))
    assert all(n <= n_crashes for n in repeated.values()), repeated
    assert set(completions) <= set(ids.values())
