"""A whole installation, each part on a machine of its own: proxy, servers, engines, workers, PostgreSQL and Redis."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cluster import nodes
from tests.cluster.network import Network, on
from tests.harness import REPOSITORY
from tests.nginx import Nginx
from tests.postgres import Postgres, binaries
from tests.servers import RedisServer
from typeless_grpc.client import Client

SERVERS, ENGINES, WORKERS = ("server-1", "server-2"), ("engine-1", "engine-2"), ("worker-1", "worker-2")
MACHINES = ("proxy", *SERVERS, *ENGINES, *WORKERS, "postgresql", "redis")
PORT, ENGINE_PORT = 50051, 50052
ADMIN_KEY, ENGINE_KEY = "the-key-of-the-operator", "the-secret-of-all-engines"
START_S = STOP_S = 60.0
WORKER_TIMEOUT_S = 5.0  # so that a worker is given up while it cannot be reached
SUPERVISOR_S = 1.0  # after which a supervisor starts a process again

# Processes are forked from one that has imported everything and has no threads: imports take seconds of a core.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        *("tests.cluster.nodes", "typeless_grpc.app.background", "typeless_grpc.app.root", "typeless_grpc.app.engines"),
        *("dbos", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "fsspec.implementations.local"),
    ]
)


class Node:
    """A process of the product on its machine. code: a directory with another version of it, None for this one."""

    def __init__(self, name: str, kind: str, settings: Mapping[str, Any], directory: Path) -> None:
        self.name, self.log = name, directory / f"{name}.log"
        self._arguments = (name, kind, dict(settings), directory / "journal", self.log)
        self._process: BaseProcess | subprocess.Popen[bytes] | None = None
        self.code: Path | None = None

    def start(self) -> None:
        if self.code is None:
            self._process = FORKSERVER.Process(target=nodes.run, args=self._arguments)
            self._process.start()
        else:
            command = [sys.executable, "-m", "tests.cluster.nodes", json.dumps(self._arguments, default=str)]
            self._process = subprocess.Popen(command, cwd=self.code)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._wait()

    def stop(self) -> None:
        """Send SIGTERM, and wait for the end."""
        assert self._process is not None
        self._process.terminate()
        status = self._wait()
        assert status == 0, f"{self.name} ended with {status}"

    def _wait(self) -> int | None:
        if isinstance(self._process, subprocess.Popen):
            return self._process.wait(STOP_S)
        assert self._process is not None
        self._process.join(STOP_S)
        return self._process.exitcode

    @property
    def is_running(self) -> bool:
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is None
        return self._process is not None and self._process.is_alive()


class Installation:
    """All of it. directory: what machines share by files: the storage, the journal of the engines, the logs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network(MACHINES)
        self.address = self.network.addresses
        self.network.apply("proxy", REPOSITORY / "deploy" / "nginx-sysctl.conf")
        bin_dir = binaries()
        assert bin_dir is not None
        self.postgres = Postgres(bin_dir, self.address["postgresql"], on("postgresql"))
        self.redis = RedisServer(directory, host=self.address["redis"], on=on("redis"))
        targets = [f"{self.address[name]}:{PORT}" for name in SERVERS]
        self.nginx = Nginx(directory, targets, self.address["proxy"], on("proxy"))
        self.nodes: dict[str, Node] = {}
        for names, kind in ((ENGINES, "engine"), (SERVERS, "server"), (WORKERS, "worker")):
            for name in names:
                self.nodes[name] = Node(name, kind, self.settings(name), directory)

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of a machine."""
        own = self.directory / name
        own.mkdir(exist_ok=True)
        settings: dict[str, Any] = {
            "data_dir": own,
            "model": "scripted",
            "engine_key": ENGINE_KEY,
            "drain_timeout_s": 20.0,
        }
        if name in ENGINES:
            return settings | {"engine_listen": f"{self.address[name]}:{ENGINE_PORT}"}
        generous = ("transcribe", "long", "batch", "stream", "jobs", "config")
        settings |= {
            "database_url": self.postgres.url,
            "storage_url": str(self.directory / "storage"),
            "redis_url": self.redis.url,
            "engine_address": [f"{self.address[one]}:{ENGINE_PORT}" for one in ENGINES],
            "auth_enabled": True,
            "require_auth": True,
            "admin_keys": [ADMIN_KEY],
            "job_chunk_s": 5.0,
            "worker_timeout_s": WORKER_TIMEOUT_S,
            "rate_limit_audio": "1000000/minute",
            **{f"rate_limit_{group}": "100000/minute" for group in generous},
        }
        if name in WORKERS:
            return settings
        return settings | {
            "host": self.address[name],
            "port": PORT,
            "trusted_proxies": [self.address["proxy"]],
            "max_concurrent_jobs": 0,
            "stream_store": "database",
        }

    # ---- life ----

    def start(self) -> None:
        self.redis.start()
        self.nginx.start()
        for node in self.nodes.values():
            node.start()
        self.until_well()

    def until_well(self) -> None:
        """Wait until both servers serve, and both workers run jobs."""
        for name in SERVERS:
            wait_until(lambda: self.is_serving(name), START_S, f"{name} serves")  # noqa: B023
        with Client(self.target("server-1"), api_key=ADMIN_KEY) as client:
            wait_until(lambda: client.jobs.stats().workers == len(WORKERS), START_S, "both workers run jobs")

    def stop(self) -> None:
        """Stop all; what does not stop is killed with the namespaces."""
        for node in self.nodes.values():
            if node.is_running:
                node.kill()
        self.nginx.kill()
        self.redis.kill()
        self.postgres.remove()

    def kill(self, name: str) -> None:
        """`kill -9` of a process."""
        {"proxy": self.nginx.kill, "redis": self.redis.kill, "postgresql": self.postgres.kill}.get(
            name, lambda: self.nodes[name].kill()
        )()

    def replace(self, name: str, kind: str, **settings: Any) -> None:
        """Stop a node, and start another one in its place."""
        self.nodes[name].stop()
        self.nodes[name] = Node(name, kind, self.settings(name) | settings, self.directory)
        self.nodes[name].start()

    def stop_one(self, name: str) -> None:
        """Stop a process in its own time."""
        stores = {"redis": self.redis.stop, "postgresql": lambda: self.postgres.stop("fast")}
        stores.get(name, lambda: self.nodes[name].stop())()

    def restart(self, name: str) -> None:
        """Start a process again, as its supervisor would; return once it accepts connections."""
        time.sleep(SUPERVISOR_S)
        if name == "postgresql":
            wait_until(lambda: _succeeds(self.postgres.start), START_S, "PostgreSQL starts")
        else:
            {"proxy": self.nginx.start, "redis": self.redis.start}.get(name, lambda: self.nodes[name].start())()
        if name in SERVERS:
            wait_until(lambda: self.is_serving(name), START_S, f"{name} serves")

    # ---- callers ----

    def target(self, name: str = "proxy") -> str:
        return f"{self.address[name]}:{self.nginx.port if name == 'proxy' else PORT}"

    def is_serving(self, name: str) -> bool:
        with grpc.insecure_channel(self.target(name)) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def journal(self) -> list[str]:
        """What the engines have begun and done."""
        path = self.directory / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def completed_jobs(self) -> Counter[str]:
        """How often each job was completed, by the logs of the workers."""
        lines = "".join(self.nodes[name].log.read_text() for name in WORKERS)
        return Counter(re.findall(r'"event": "job (\S+) completed in ', lines))


def wait_until(holds: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def _succeeds(start: Callable[[], None]) -> bool:
    try:
        start()
    except AssertionError:
        return False
    return True
