"""A server without free file descriptors or threads refuses or waits, burns no CPU, and recovers by itself."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.faults.conftest import PCM, Cluster, Node, check_whole, ended, submit, wait_until
from tests.faults.node import recording
from tests.harness import AUDIO
from tests.servers import free_port
from typeless_grpc.client import CallFailed, Client, Jobs, RetryPolicy
from typeless_grpc.stores.database import sqlite_url

pytestmark = pytest.mark.timeout(200)

WAIT_S = 1.0
N_CONNECTIONS = 40


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path, sqlite_url(tmp_path / "jobs.db"))
    yield running
    running.stop()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def no_more_files(node: Node, n_free: int) -> Iterator[None]:
    """Let a process open only so many more files."""
    process = psutil.Process(node.pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + n_free, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def no_more_threads(node: Node) -> Iterator[None]:
    """Let a process start no thread and no process (cgroup v1 or v2)."""
    root = Path("/sys/fs/cgroup")
    group = (root / "pids" if (root / "pids").is_dir() else root) / f"typeless-test-{node.pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(node.pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
    except OSError as error:
        pytest.skip(f"no cgroup can be made here ({error}); in a container: docker run --privileged")
    try:
        yield
    finally:
        (group / "pids.max").write_text("max")


def check_calls(node: Node) -> None:
    with Client(f"127.0.0.1:{node.port}") as client:
        assert client.transcribe(recording(5, 2), raw_format=PCM).transcript.segments[0].text == "5:0"
        assert client.transcribe((AUDIO / "en_two_sentences.flac").read_bytes()).transcript.segments
    for number, job in ended(node, submit(node, range(6, 8))).items():
        check_whole(job, number)


def test_without_file_descriptors_open_calls_go_on_and_the_rest_waits(sqlite: Cluster):
    metrics_port = free_port()
    node = sqlite.start(metrics_port=metrics_port)
    check_calls(node)
    process = psutil.Process(node.pid)
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel, contextlib.ExitStack() as stack:
        jobs = Jobs(channel, RetryPolicy(max_attempts=1))
        jobs.stats()  # connects
        n_files = process.num_fds()
        with no_more_files(node, 3):
            for port in (node.port, metrics_port):
                for _ in range(N_CONNECTIONS):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            before_s = cpu_s(process)
            time.sleep(WAIT_S)
            assert cpu_s(process) - before_s < 0.5 * WAIT_S, "it does not spin in accept"
            began_s = time.monotonic()
            for _ in range(2):
                with contextlib.suppress(CallFailed):  # a pooled connection to the database, or none
                    jobs.submit(recording(9, 5), raw_format=PCM)
            assert time.monotonic() - began_s < 15
        began_s = time.monotonic()
        jobs.stats()
    wait_until(lambda: process.num_fds() <= n_files + 5, timeout_s=30)
    check_calls(node)
    assert time.monotonic() - began_s < 30
    assert not node.has_ended


# gRPC itself sometimes needs a thread, and then ends the process or accepts no connection.
@pytest.mark.hardening
def test_without_new_threads_calls_are_served_by_those_that_are_there(sqlite: Cluster):
    node = sqlite.start()
    with Client(f"127.0.0.1:{node.port}") as client:
        client.server_info()  # connects: gRPC may need a thread of its own to accept a connection
        with no_more_threads(node):
            for _ in range(4):
                assert client.transcribe(recording(5, 2), raw_format=PCM).transcript.segments[0].text == "5:0"
            job_id = client.jobs.submit(recording(6, 5), raw_format=PCM).job_id
            assert client.jobs.get(job_id).job_id == job_id
    began_s = time.monotonic()
    check_calls(node)
    assert time.monotonic() - began_s < 30
    with Client(f"127.0.0.1:{node.port}") as client:
        check_whole(client.jobs.wait(job_id), 6, seconds=5)
    wait_until(lambda: "is healthy again" in node.log.read_text() or "unhealthy" not in node.log.read_text(), 15)
    assert not node.has_ended
