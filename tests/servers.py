"""Real Redis servers for tests, on loopback, in temporary folders."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

START_S = 30.0


# Below the ports that Linux gives to connections (net.ipv4.ip_local_port_range), one of which could be taken between
# the check and the use of a port.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port that nothing uses, and that no test of this machine gets again while this process lives.

    What will use it takes seconds to start. Until then, a lock on a file holds it.
    """
    folder = Path(tempfile.gettempdir()) / "typeless-test-ports"
    folder.mkdir(exist_ok=True)
    while True:
        port = random.SystemRandom().choice(PORTS)
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", port))
            return port
        except OSError:
            os.close(lock)


class RedisServer:
    """A redis-server that can be killed and started again on the same port."""

    def __init__(self, folder: Path, *options: str, host: str = "127.0.0.1", on: Sequence[str] = ()) -> None:
        """host: where it listens; others than this machine may then connect. on: what to put before the command."""
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server on this machine: apt-get install redis-server")
        self.port, self._host = free_port(), host
        self.url = f"redis://{host}:{self.port}/0"
        self._command = [*on, binary, "--port", str(self.port), "--bind", host, "--save", "", "--dir", str(folder)]
        self._command += ["--protected-mode", "yes" if host == "127.0.0.1" else "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until_it_listens(self.port, self._host)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def redis_sentinel(folder: Path, watched: RedisServer) -> Iterator[str]:
    """The URL of a Redis, by way of a sentinel that watches it."""
    binary = shutil.which("redis-server")
    assert binary is not None
    port = free_port()
    file = folder / "sentinel.conf"
    file.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor limits 127.0.0.1 {watched.port} 1\n", "utf-8")
    process = subprocess.Popen([binary, str(file), "--sentinel"], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        until_it_listens(port)
        yield f"redis+sentinel://127.0.0.1:{port}/limits"
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[str]:
    """The URL of a cluster of one Redis."""
    # Its second port would be the first and 10,000, which may be more than there are.
    with redis_server(folder, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        cli = ["redis-cli", "-p", str(server.port), "cluster"]
        subprocess.run([*cli, "addslotsrange", "0", "16383"], check=True, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_S
        while b"cluster_state:ok" not in subprocess.run([*cli, "info"], check=True, capture_output=True).stdout:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield f"redis+cluster://127.0.0.1:{server.port}"


def until_it_listens(port: int, host: str = "127.0.0.1") -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"nothing listens on {port} after {START_S} s")
