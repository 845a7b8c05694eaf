"""Seventy per cent of what the server can serve, for long: nothing grows, and every call is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.hardening.callers import Caller, caller
from tests.hardening.kinds import KINDS
from tests.hardening.load import N_FLOODING, Answers, Calls, Outcome, channel, measure_peak, quantile
from tests.hardening.server import KEYS, Server, wait_until

LOAD = 0.7
PEAK_S = 15.0
N_SAMPLES = 40
KIND_EVERY_S = 0.5
SETTLE_S = 30.0
# What callers leave expires during a soak, also a short one.
SETTINGS: Mapping[str, Any] = {"stream_resume_window_s": 10.0, "upload_ttl": 30.0, "job_ttl": 60.0}
# How much more the last quarter may have than the second one; the first fills caches.
MORE_MEMORY = 1.05
MORE_MEMORY_MB = 8.0
MORE_LATENCY = 1.5
MORE = 6.0  # threads, tasks, descriptors


@dataclass(frozen=True)
class Sample:
    """The server at one moment, and the median latency of the calls since the sample before."""

    memory_mb: float
    threads: float
    tasks: float
    descriptors: float
    objects: float
    latency_s: float


@dataclass
class Soaked:
    """What a soak has shown. n_kinds: calls of every kind beside the load; failures: of those."""

    minutes: float
    calls_a_second: float = 0.0
    answers: Answers = field(default_factory=Answers)
    n_kinds: int = 0
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    n_unaccounted: float = 0.0

    def quarters(self, name: str) -> tuple[float, float]:
        """The medians of the second quarter and of the last one."""
        values = [getattr(one, name) for one in self.samples]
        n = max(1, len(values) // 4)
        return statistics.median(values[n : 2 * n] or values), statistics.median(values[-n:])

    def growing(self) -> dict[str, tuple[float, float]]:
        """What has grown."""
        found = {}
        for name in ("memory_mb", "threads", "tasks", "descriptors", "latency_s"):
            before, after = self.quarters(name)
            allowed = {
                "memory_mb": before * MORE_MEMORY + MORE_MEMORY_MB,
                "latency_s": before * MORE_LATENCY,
            }.get(name, before + MORE)
            if after > allowed:
                found[name] = (before, after)
        return found


async def run(server: Server, minutes: float) -> Soaked:
    """Load the server for so long."""
    soaked, peak, answers = Soaked(minutes), Outcome(), Answers()
    await measure_peak(server, PEAK_S, peak)
    soaked.answers, soaked.calls_a_second = answers, LOAD * peak.calls_a_second
    ends_s = time.monotonic() + 60 * minutes
    async with contextlib.AsyncExitStack() as stack:
        callers = [
            Calls(await stack.enter_async_context(channel(server, KEYS[i])), answers, i) for i in range(N_FLOODING)
        ]
        every = await stack.enter_async_context(caller(server, 1))
        async with asyncio.TaskGroup() as group:
            latencies_s: list[float] = []
            group.create_task(_call(callers, soaked.calls_a_second, ends_s, latencies_s))
            group.create_task(_every_kind(every, ends_s, soaked))
            group.create_task(_sample(server, 60 * minutes / N_SAMPLES, ends_s, latencies_s, soaked))
        await asyncio.to_thread(wait_until, lambda: not _n_unaccounted(server), SETTLE_S)
        soaked.n_unaccounted = _n_unaccounted(server)
    return soaked


async def _call(callers: Sequence[Calls], rate: float, ends_s: float, latencies_s: list[float]) -> None:
    """Make calls at this rate, whether those before have ended or not."""
    began_s, n = time.monotonic(), 0

    async def one() -> None:
        sent_s = time.monotonic()
        if await callers[n % len(callers)].call() is None:
            latencies_s.append(time.monotonic() - sent_s)

    async with asyncio.TaskGroup() as group:
        while (now_s := time.monotonic()) < ends_s:
            for _ in range(int((now_s - began_s) * rate) - n):
                group.create_task(one())
                n += 1
            await asyncio.sleep(0.02)


async def _every_kind(one: Caller, ends_s: float, soaked: Soaked) -> None:
    while time.monotonic() < ends_s:
        kind = KINDS[soaked.n_kinds % len(KINDS)]
        soaked.n_kinds += 1
        try:
            await kind(one)
        except Exception as error:
            soaked.failures.append(f"{kind.__name__}: {error!r}"[:300])
        await asyncio.sleep(KIND_EVERY_S)


async def _sample(server: Server, every_s: float, ends_s: float, latencies_s: list[float], soaked: Soaked) -> None:
    while time.monotonic() < ends_s - every_s / 2:
        await asyncio.sleep(every_s)
        latency_s = quantile(latencies_s, 0.5)
        latencies_s.clear()
        counted: Any = await asyncio.to_thread(server.process)
        soaked.samples.append(
            Sample(counted.memory_mb, counted.threads, counted.tasks, counted.descriptors, counted.objects, latency_s)
        )


def _n_unaccounted(server: Server) -> float:
    """Calls that began and did not end, by the server's own count."""
    gauges = server.gauges()
    return gauges["grpc_server_started_total"] - gauges["grpc_server_handled_total"]
