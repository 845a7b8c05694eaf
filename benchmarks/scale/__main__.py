"""Many live streams over several fronts, with an engine that only waits: what the control plane costs.

    python -m benchmarks.scale --fronts 1 --streams 125
    python -m benchmarks.scale --fronts 8 --streams 1000 --slowdown 40
    python -m benchmarks.scale --streams 32 --call-audio 4

Fronts are `typeless serve` as in production, with TLS, keys, limits in Redis, durable streams in PostgreSQL, and
metrics that are scraped. They share one engine process. Each stream has a connection of its own and reads text without
a break: 10 messages a second, with interims. Delays are of everything but the engine: from the message that decides to
the event at the caller, less the engine's time.

slowdown: audio is sent so many times more slowly, and the engine takes so much longer. CPU for each second of audio
is that of full speed, except for timers: they run by the clock of the machine, and count so many times. Delays are
those of less busy machines.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from benchmarks.scale.callers import Found, Plan
from benchmarks.scale.stores import Stores, running
from tests.certificates import Authority
from tests.servers import free_port

SCRAPE_S = 15.0
N_KEYS = 20
LOOPS = "event loops of fronts"
ON_FRONTS: Mapping[str, object] = {
    "auth_enabled": True,
    "require_auth": True,
    "rate_limit_stream": "1000000/minute",
    "rate_limit_audio": "100000000/minute",
    "rate_limit_transcribe": "1000000/minute",
    "max_streams": 1000,
    "max_streams_per_caller": 1000,
    "max_concurrent_jobs": 0,
    "max_held_audio_s": 1e6,
    "stream_interims_at_once": 64,
}


@contextmanager
def process(command: Sequence[str], ready: str, **settings: object) -> Iterator[tuple[psutil.Process, re.Match[str]]]:
    """Run a Python module until this closes, once it has printed a line with the pattern `ready`."""
    environment = {f"TYPELESS_{name.upper()}": str(value) for name, value in settings.items()}
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            assert started.stdout is not None
            yield psutil.Process(started.pid), _until(started.stdout, ready)
        finally:
            started.terminate()
            started.wait(90)


def _until(output: IO[str], pattern: str) -> re.Match[str]:
    for line in output:
        if found := re.search(pattern, line):
            return found
    raise RuntimeError(f"a process ended before it printed {pattern!r}")


def cpu_s(parts: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    """The CPU seconds of each part's processes so far, their children included; and of the fronts' event loops."""
    spent = {
        name: sum(_own_s(one) for main in processes for one in [main, *main.children(recursive=True)])
        for name, processes in parts.items()
    }
    return spent | {LOOPS: sum(_loop_s(front) for front in parts["fronts"])}


def _loop_s(process: psutil.Process) -> float:
    return sum(float(one.user_time + one.system_time) for one in process.threads() if one.id == process.pid)


def _own_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run everything once; return the figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores = stack.enter_context(running(directory))
        engine_port = free_port()
        engine, _ = stack.enter_context(process(
            ["benchmarks.scale.engine", str(engine_port), str(given.slowdown)], "ready"
        ))  # fmt: skip
        authority = Authority(directory) if given.tls else None
        keys = [f"a-key-of-the-simulation-{number:02}" for number in range(N_KEYS)]
        settings = ON_FRONTS | _addresses(stores, engine_port) | {"api_keys": ",".join(keys), "log_format": "json"}
        if not given.durable:
            settings["stream_store"] = "none"
        if authority is not None:
            settings["tls_cert_file"], settings["tls_key_file"] = authority.issue("server")
        fronts, targets, metrics = [], [], []
        for number in range(given.fronts):
            metrics_port = free_port()
            own = {"data_dir": directory / f"front-{number}", "metrics_port": metrics_port}
            log = stack.enter_context(open(directory / f"front-{number}.log", "w"))
            front, found = stack.enter_context(
                process(["benchmarks.scale.front", log.name], r"takes calls on [^ ]*:(\d+):", **settings | own)
            )
            if given.front_core is not None:
                _pin(front, given.front_core)
            fronts.append(front)
            targets.append(f"127.0.0.1:{found[1]}")
            metrics.append(metrics_port)
        plan = Plan(
            targets, keys, given.streams, given.slowdown, given.ramp, given.seconds, given.interims,
            authority.ca.read_text() if authority is not None else "", given.call_audio,
        )  # fmt: skip
        parts = {"fronts": fronts, "engine": [engine]} | {k: [v] for k, v in stores.processes().items()}
        return _observed(plan, parts, stores, metrics) | {"warnings of fronts": _warnings(directory)}


def _warnings(directory: Path) -> dict[str, int]:
    """What fronts warned of while they ran, and how often."""
    lines = [line for log in directory.glob("front-*.log") for line in log.read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return dict(Counter(one["event"] for one in events if one["level"] in ("warning", "error")))


def _pin(front: psutil.Process, core: int) -> None:
    for thread in front.threads():
        os.sched_setaffinity(thread.id, {core})


def _addresses(stores: Stores, engine_port: int) -> dict[str, object]:
    return {
        "engine_address": f"127.0.0.1:{engine_port}",
        "database_url": stores.postgres.url,
        "redis_url": stores.redis_url,
        "storage_url": str(stores.storage),
        "stream_store": "database",
    }


def _observed(
    plan: Plan, parts: Mapping[str, Sequence[psutil.Process]], stores: Stores, metrics: Sequence[int]
) -> dict[str, Any]:
    stop = threading.Event()
    scraping = threading.Thread(target=_scrape, args=(metrics, stop))
    scraping.start()
    callers = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale.callers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert callers.stdin is not None
        assert callers.stdout is not None
        callers.stdin.write(json.dumps(asdict(plan)) + "\n")
        callers.stdin.flush()
        _until(callers.stdout, "steady")
        began_s, cpu_before, before = time.monotonic(), cpu_s(parts), stores.counted()
        _until(callers.stdout, "measured")
        took_s, cpu_after, after = time.monotonic() - began_s, cpu_s(parts), stores.counted()
        memory = {name: sum(one.memory_info().rss for one in parts[name]) / 1e6 for name in ("fronts", "engine")}
        threads = sum(one.num_threads() for one in parts["fronts"])
        found = Found(**json.loads(callers.stdout.readline()))
    finally:
        stop.set()
        callers.terminate()
        callers.wait()
        scraping.join()
    audio_s = found.n_calls * plan.call_audio_s or took_s / plan.slowdown * plan.n_streams
    spent = {name: cpu_after[name] - cpu_before[name] for name in cpu_before} | {"callers": found.cpu_s}
    stored = {name: after[name] - before[name] for name in before if name != "PostgreSQL connections"}
    return {
        "fronts": len(plan.targets),
        "streams": plan.n_streams,
        "slowdown": plan.slowdown,
        "seconds of audio": round(audio_s),
        "CPU ms a second of audio": {name: round(1000 * spent_s / audio_s, 3) for name, spent_s in spent.items()},
        "CPU % of a core": {name: round(100 * spent_s / took_s, 1) for name, spent_s in spent.items()},
        "finals, ms": _quantiles(found.finals_s),
        "interims, ms": _quantiles(found.interims_s),
        "messages sent late, ms": _quantiles(found.late_s),
        "unary calls a second": round(found.n_calls / took_s, 1),
        "messages a second of audio": round(found.n_messages / audio_s, 2),
        "events a second of audio": round(found.n_events / audio_s, 2),
        "finals a second of audio": round(found.n_finals / audio_s, 3),
        "bytes from callers a second of audio": round(found.sent_bytes / audio_s),
        "bytes to callers a second of audio": round(found.received_bytes / audio_s),
        "stores, a second of audio": {name: round(n / audio_s, 3) for name, n in stored.items()},
        "PostgreSQL connections": after["PostgreSQL connections"],
        "memory MB": {name: round(n) for name, n in memory.items()},
        "threads of fronts": threads,
        "finals without times": found.n_unmatched,
        "errors": found.errors[:5],
        "n errors": len(found.errors),
    }


def _scrape(ports: Sequence[int], stop: threading.Event) -> None:
    while not stop.wait(SCRAPE_S):
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                answer.read()


def _quantiles(values_s: Sequence[float]) -> dict[str, float]:
    found = {f"p{p}": round(1000 * float(np.percentile(values_s, p)), 1) for p in (50, 95, 99)} if values_s else {}
    return found | {"n": len(values_s)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fronts", type=int, default=1)
    parser.add_argument("--streams", type=int, default=125, help="over all fronts (default: 125)")
    parser.add_argument("--slowdown", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure (default: 60)")
    parser.add_argument("--ramp", type=float, default=15.0, help="seconds in which streams open (default: 15)")
    parser.add_argument(
        "--call-audio", type=float, default=0.0, help="make unary calls of so many seconds instead of streams"
    )
    parser.add_argument("--front-core", type=int, help="a core to pin the fronts to (default: any)")
    parser.add_argument("--no-interims", dest="interims", action="store_false")
    parser.add_argument("--no-tls", dest="tls", action="store_false")
    parser.add_argument("--no-store", dest="durable", action="store_false", help="sessions in memory only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does, it must end all processes
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))


if __name__ == "__main__":
    main()
