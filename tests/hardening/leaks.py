"""Calls of every kind, half of them cancelled or cut off at random moments: afterwards the server has what it had.

One call in four is cancelled, one in four loses its connection (RST). The others must succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.hardening.callers import Caller, caller
from tests.hardening.kinds import KINDS, Kind, manage_keys
from tests.hardening.server import KEPT_ROWS, Census, Server, wait_until
from typeless_grpc.pb.v1 import jobs_pb2

N_CALLERS = 8
CALL_S = 60.0
SETTLE_S = 90.0
# Short times to live, so that what was left on purpose expires within the test.
SETTINGS: Mapping[str, Any] = {
    "stream_resume_window_s": 5.0,
    "upload_ttl": 8.0,
    "job_ttl": 120.0,
    "job_poll_s": 0.05,
    "max_unfinished_uploads": 100_000,
    "max_api_keys": 100_000,
}
# A job that has ended cannot be cancelled, one that still ends cannot be deleted yet, and one may have expired.
HARMLESS = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
# How much more there may be afterwards: caches and pools that fill, and the allocator, whose heap has holes.
MORE_MEMORY_MB, MORE_OBJECTS = 24.0, 4000
OBJECTS_OF_A_KEY = 12  # keys are never deleted, only revoked
MORE = {"threads": 16, "asyncio tasks": 2, "descriptors": 16, "child processes": 1, "file locks": 2}


@dataclass
class Broken:
    """What was done. calls: by kind and how they ended: whole, cancelled or reset; failures: of those left whole."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    before: Census | None = None
    after: Census | None = None

    @property
    def n_calls(self) -> int:
        return sum(self.calls.values())

    @property
    def n_broken(self) -> int:
        return sum(n for (_, how), n in self.calls.items() if how != "whole")

    def allowed(self, name: str) -> float:
        """How much more of something there may be."""
        n_keys = sum(n for (kind, _), n in self.calls.items() if kind == manage_keys.__name__)
        objects = MORE_OBJECTS + OBJECTS_OF_A_KEY * n_keys
        return {"memory, MB": MORE_MEMORY_MB, "Python objects": objects, **MORE}.get(name, 0)

    def left_behind(self) -> dict[str, tuple[float, float]]:
        """What there is more of than is allowed: before and after."""
        assert self.before is not None
        assert self.after is not None
        before, after = self.before.numbers, self.after.numbers
        return {
            name: (before.get(name, 0.0), n)
            for name, n in after.items()
            if n > before.get(name, 0.0) + self.allowed(name) and name.rpartition(".")[2] not in KEPT_ROWS
        }


async def run(server: Server, n_calls: int, seed: int = 1, kinds: Sequence[Kind] = KINDS) -> Broken:
    """Make so many calls, after a tenth of them that fill caches; return what is there before and afterwards."""
    chance = random.Random(seed)
    done = Broken()
    durations: defaultdict[str, float] = defaultdict(lambda: 0.1)
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(caller(server, seed + i)) for i in range(N_CALLERS)]
        await _calls(callers, kinds, max(6 * len(kinds), n_calls // 10), chance, done, durations)
        await settle(server, callers[0])
        done.before = await asyncio.to_thread(server.census)
        began_s = time.monotonic()
        await _calls(callers, kinds, n_calls, chance, done, durations)
        done.seconds = time.monotonic() - began_s
        await settle(server, callers[0])
        done.after = await asyncio.to_thread(server.census)
    return done


async def _calls(
    callers: list[Caller],
    kinds: Sequence[Kind],
    n_calls: int,
    chance: random.Random,
    done: Broken,
    durations: dict[str, float],
) -> None:
    """Make so many calls, each caller one at a time, with all kinds equally often."""
    left = [kinds[i % len(kinds)] for i in range(n_calls)]
    chance.shuffle(left)

    async def work(one: Caller) -> None:
        while left:
            await _call(one, left.pop(), chance, done, durations)

    async with asyncio.TaskGroup() as group:
        for one in callers:
            group.create_task(work(one))


async def _call(
    one: Caller,
    kind: Kind,
    chance: random.Random,
    done: Broken,
    durations: dict[str, float],
) -> None:
    name = kind.__name__
    how = chance.choice(("whole", "whole", "cancelled", "reset"))
    done.calls[name, how] += 1
    running = asyncio.ensure_future(kind(one))
    began_s = time.monotonic()
    if how != "whole":
        await asyncio.wait([running], timeout=chance.uniform(0, 1.2 * durations[name]))
        if how == "reset":
            await one.cut()
        else:
            running.cancel()
    ended, _ = await asyncio.wait([running], timeout=CALL_S)
    if not ended:
        running.cancel()
        done.failures.append(f"{name}, {how}: has not ended after {CALL_S:.0f} s")
        return
    if how == "whole":
        if not running.cancelled() and running.exception() is None:
            durations[name] += 0.2 * (time.monotonic() - began_s - durations[name])
        else:
            done.failures.append(f"{name}: {running.exception()!r}"[:500])
    elif not running.cancelled():
        running.exception()


async def settle(server: Server, one: Caller) -> None:
    """Delete all jobs, and wait until nothing runs and what was left has expired."""
    while found := (await one.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1000))).jobs:
        for job in found:
            for request in (jobs_pb2.CancelJobRequest, jobs_pb2.DeleteJobRequest):
                method = getattr(one.jobs, request.__name__.removesuffix("Request"))
                try:
                    await method(request(job_id=job.job_id))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in HARMLESS:
                        raise
        await asyncio.sleep(0.2)

    def is_settled() -> bool:
        rows, gauges = server.rows(), server.gauges()
        waiting = ("typeless_streams_open", "typeless_sessions_kept", "typeless_held_audio_seconds")
        return not any(rows[f"jobs.{table}"] for table in ("jobs", "uploads", "upload_parts")) and not any(
            gauges[name] for name in waiting
        )

    await asyncio.to_thread(wait_until, is_settled, SETTLE_S)
    await asyncio.sleep(3.0)  # idle threads and connections end
