from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from tests.unit.idle import until_idle
from typeless_grpc import health
from typeless_grpc.health import NOT_SERVING, SERVING, UNKNOWN, Health, HealthCheck, Probe

JOBS, LIVE = "typeless.v1.JobsService", "typeless.v1.TranscriptionService"


def of(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def statuses(served: Health) -> dict[str, int]:
    return {name: (await served.Check(of(name), None)).status for name in ("", JOBS, LIVE)}


async def test_each_service_is_as_healthy_as_what_it_needs():
    healthy = {"database", "engine"}
    checks = [
        HealthCheck("database", frozenset({JOBS}), lambda: "database" in healthy),
        HealthCheck("engine", frozenset({LIVE, ""}), lambda: "engine" in healthy),
    ]
    served = Health([JOBS, LIVE], checks)
    assert await statuses(served) == dict.fromkeys(["", JOBS, LIVE], NOT_SERVING)
    served.begin()
    assert await statuses(served) == dict.fromkeys(["", JOBS, LIVE], SERVING)
    healthy.remove("database")
    served.update()
    assert await statuses(served) == {"": SERVING, JOBS: NOT_SERVING, LIVE: SERVING}
    healthy.add("database")
    healthy.remove("engine")
    served.update()
    assert await statuses(served) == {"": NOT_SERVING, JOBS: SERVING, LIVE: NOT_SERVING}
    healthy.add("engine")
    served.update()
    assert await statuses(served) == dict.fromkeys(["", JOBS, LIVE], SERVING)
    served.end()
    served.update()
    assert await statuses(served) == dict.fromkeys(["", JOBS, LIVE], NOT_SERVING)


async def test_a_check_that_raises_is_unhealthy():
    def fails() -> bool:
        raise ZeroDivisionError

    served = Health([JOBS, LIVE], [HealthCheck("database", frozenset({JOBS}), fails)])
    served.begin()
    assert await statuses(served) == {"": SERVING, JOBS: NOT_SERVING, LIVE: SERVING}


async def test_watchers_are_notified_of_each_change_and_of_no_other():
    is_healthy = [True]
    served = Health([JOBS, LIVE], [HealthCheck("database", frozenset({JOBS}), lambda: is_healthy[0])])
    served.begin()
    watches = {service: served.Watch(of(service), None) for service in (JOBS, LIVE, "nobody")}
    assert [(await anext(watch)).status for watch in watches.values()] == [SERVING, SERVING, UNKNOWN]
    waiting = {service: asyncio.ensure_future(anext(watch)) for service, watch in watches.items()}
    await until_idle()
    is_healthy[0] = False
    served.update()
    assert (await waiting[JOBS]).status == NOT_SERVING
    await until_idle()
    assert not waiting[LIVE].done()
    assert not waiting["nobody"].done()
    for task in waiting.values():
        task.cancel()


async def test_a_watcher_that_does_not_read_delays_no_other():
    served = Health([LIVE])
    silent: AsyncIterator[Any] = served.Watch(of(LIVE), None)
    await anext(silent)  # the generator is not resumed, as if its write were blocked
    served.begin()
    assert (await served.Check(of(LIVE), None)).status == SERVING
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(served.notified(), 0.01)
    await silent.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(served.notified(), 30)


async def test_a_probe_without_an_answer_fails_until_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0.01)
    answering, done = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    before: list[bool] = []  # what the probe says as it calls again

    def ask() -> None:
        before.append(probe.answers)
        answering.wait(10)
        if len(before) == 2:
            raise ConnectionError
        if len(before) == 4:
            loop.call_soon_threadsafe(done.set)

    probe = Probe(ask)
    running = asyncio.create_task(probe.run())
    async with asyncio.timeout(30):
        while probe.answers:  # noqa: ASYNC110 - a probe has no event
            await asyncio.sleep(0.01)
        assert len(before) == 1  # it does not call beside a call that has not returned
        answering.set()
        await done.wait()
    running.cancel()
    assert before == [True, True, False, True]
