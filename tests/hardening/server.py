"""Starts the server under test, and counts from outside what it has: memory, threads, files, rows, locks, sessions."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.conftest import FORKSERVER
from tests.hardening import node
from tests.servers import free_port

ADMIN_KEY = "an-admin-key-of-the-hardening-tests"
KEYS = tuple(f"a-key-of-caller-{number}-of-the-hardening-tests" for number in range(100))
MODEL = "tiny.en"
START_S = 120.0
ANSWER_S = 60.0
# What shows work that has not ended, or that nobody waits for.
GAUGES = (
    "typeless_streams_open",
    "typeless_sessions_kept",
    "typeless_held_audio_seconds",
    "typeless_queue_depth",
)
# Rows that are kept for a time on purpose: deletions that may be repeated, usage, the workers, versions of the tables.
KEPT_ROWS = frozenset({"job_deletions", "job_usage", "usage", "workers", "store_identity", "steady_clock"})


@dataclass(frozen=True)
class Census:
    """What a server has, in numbers. kinds, running: see `node.Process`."""

    numbers: Mapping[str, float]
    kinds: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)


class Server:
    """A server in a process of its own."""

    def __init__(
        self, process: BaseProcess, link: Connection, port: int, settings: Mapping[str, Any], log: Path
    ) -> None:
        self._process, self._link, self.log = process, link, log
        self.target = f"127.0.0.1:{port}"
        self.console_port: int = settings["console_port"]
        self.metrics_port: int = settings["metrics_port"]
        self.directory = Path(settings["data_dir"])
        self.pid: int = process.pid  # type: ignore[assignment]

    def process(self) -> node.Process:
        """What the process says of itself."""
        self._link.send("count")
        assert self._link.poll(ANSWER_S), "the server does not answer"
        counted: node.Process = self._link.recv()
        return counted

    def cpu_s(self) -> float:
        """CPU of the process so far, without its decoders."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def gauges(self) -> dict[str, float]:
        """Sums of all metrics over their labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=ANSWER_S) as answer:
            text = answer.read().decode()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value
        return dict(found)

    def census(self) -> Census:
        """Count everything."""
        counted = self.process()
        numbers: dict[str, float] = {
            "memory, MB": counted.memory_mb,
            "Python objects": counted.objects,
            "asyncio tasks": counted.tasks,
            "threads": counted.threads,
            "descriptors": counted.descriptors,
            "child processes": len(psutil.Process(self.pid).children(recursive=True)),
            "temporary files": len(list((self.directory / "temporary").rglob("*"))),
            "files of jobs and uploads": len([one for one in self._files() if one.is_file()]),
            "file locks": self._n_locks(),
        }
        gauges = self.gauges()
        numbers |= {name: gauges[name] for name in GAUGES if name in gauges}
        numbers |= {f"rows of {table}": n for table, n in self.rows().items()}
        return Census(numbers, counted.kinds, counted.running)

    def rows(self) -> dict[str, int]:
        """Rows of all tables."""
        found: dict[str, int] = {}
        for path in sorted(self.directory.rglob("*.db")):
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                for (table,) in tables:
                    (n,) = database.execute(f'SELECT count(*) FROM "{table}"').fetchone()
                    found[f"{path.stem}.{table}"] = n
        return found

    def _files(self) -> Iterator[Path]:
        yield from (self.directory / "jobs" / "files").rglob("*")

    def _n_locks(self) -> int:
        """Locks on files that the process holds."""
        lines = Path("/proc/locks").read_text().splitlines()
        return sum(line.split()[4 + (line.split()[1] == "->")] == str(self.pid) for line in lines)

    def stop(self) -> None:
        """Drain and end the process."""
        self._link.close()
        self._process.join(60)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()


@contextmanager
def running(directory: Path, *, slowdown: float | None = 1.0, **settings: Any) -> Iterator[Server]:
    """Start a server with keys and a console, and without quotas. slowdown: see `node.run`."""
    defaults: dict[str, Any] = {
        "port": 0,
        "data_dir": directory,
        "console_port": free_port(),
        "metrics_port": free_port(),
        "auth_enabled": True,
        "require_auth": True,
        "admin_keys": ADMIN_KEY,
        "api_keys": ",".join(KEYS),
        "rate_limit_enabled": False,
        "max_streams_per_caller": 10_000,
        "log_level": "warning",
        "log_format": "json",
        "model": node.SCRIPTED if slowdown is not None else MODEL,
    }
    given = defaults | settings
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log"
    ours, theirs = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=node.run, args=(directory, log, given, slowdown, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(START_S), f"the server does not start: {log.read_text()}"
        port = ours.recv()
    except (AssertionError, EOFError):
        process.kill()
        raise RuntimeError(f"the server does not start: {log.read_text()}") from None
    server = Server(process, ours, port, given, log)
    try:
        yield server
    finally:
        server.stop()


def wait_until(holds: Any, timeout_s: float) -> bool:
    """Wait for something in another process; whether it happened in time."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.2)
    return True
