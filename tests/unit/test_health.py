from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from tests.unit.engine.harness import settle
from typeless_grpc import health
from typeless_grpc.health import NOT_SERVING, SERVING, UNKNOWN, Health, Probe, Vital

JOBS, LIVE = "typeless.v1.JobsService", "typeless.v1.TranscriptionService"


def asked(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def statuses(checked: Health) -> dict[str, int]:
    listed = await checked.List(health_pb2.HealthListRequest(), None)
    return {name: response.status for name, response in listed.statuses.items()}


async def test_each_service_is_as_well_as_what_it_needs():
    well = {"database", "engine"}
    vitals = [
        Vital("database", frozenset({JOBS}), lambda: "database" in well),
        Vital("engine", frozenset({LIVE, ""}), lambda: "engine" in well),
    ]
    checked = Health([JOBS, LIVE], vitals)
    assert await statuses(checked) == dict.fromkeys(["", JOBS, LIVE], NOT_SERVING)
    checked.begin()
    assert await statuses(checked) == dict.fromkeys(["", JOBS, LIVE], SERVING)
    well.remove("database")
    checked.look()
    assert await statuses(checked) == {"": SERVING, JOBS: NOT_SERVING, LIVE: SERVING}
    well.add("database")
    well.remove("engine")
    checked.look()
    assert await statuses(checked) == {"": NOT_SERVING, JOBS: SERVING, LIVE: NOT_SERVING}
    well.add("engine")
    checked.look()
    assert await statuses(checked) == dict.fromkeys(["", JOBS, LIVE], SERVING)
    checked.end()
    checked.look()
    assert await statuses(checked) == dict.fromkeys(["", JOBS, LIVE], NOT_SERVING)


async def test_what_cannot_be_looked_at_is_not_well():
    def fails() -> bool:
        raise ZeroDivisionError

    checked = Health([JOBS, LIVE], [Vital("database", frozenset({JOBS}), fails)])
    checked.begin()
    assert await statuses(checked) == {"": SERVING, JOBS: NOT_SERVING, LIVE: SERVING}


async def test_watchers_are_told_of_each_change_and_of_no_other():
    well = [True]
    checked = Health([JOBS, LIVE], [Vital("database", frozenset({JOBS}), lambda: well[0])])
    checked.begin()
    watches = {service: checked.Watch(asked(service), None) for service in (JOBS, LIVE, "nobody")}
    assert [(await anext(watch)).status for watch in watches.values()] == [SERVING, SERVING, UNKNOWN]
    waiting = {service: asyncio.ensure_future(anext(watch)) for service, watch in watches.items()}
    await settle()
    well[0] = False
    checked.look()
    assert (await waiting[JOBS]).status == NOT_SERVING
    await settle()
    assert not waiting[LIVE].done()
    assert not waiting["nobody"].done()
    for task in waiting.values():
        task.cancel()


async def test_a_watcher_that_does_not_read_keeps_nobody_from_the_truth():
    checked = Health([LIVE])
    silent: AsyncIterator[Any] = checked.Watch(asked(LIVE), None)
    await anext(silent)  # and it never asks for more, as a write that is blocked
    checked.begin()
    assert (await checked.Check(asked(LIVE), None)).status == SERVING
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(checked.told(), 0.01)
    await silent.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(checked.told(), 5)


async def test_what_does_not_answer_is_not_well_until_it_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(health, "ASK_EVERY_S", 0.01)
    answering, n_asked = threading.Event(), 0

    def ask() -> None:
        nonlocal n_asked
        n_asked += 1
        answering.wait(10)
        if n_asked == 2:
            raise ConnectionError

    probe = Probe(ask)
    seen: list[bool] = []
    running = asyncio.create_task(probe.run())
    async with asyncio.timeout(10):
        while probe.answers:  # noqa: ASYNC110 - a probe has no event
            await asyncio.sleep(0.01)
        assert n_asked == 1  # it is not asked beside a question that is open
        answering.set()
        while not probe.answers:  # noqa: ASYNC110
            await asyncio.sleep(0)
        while len(seen) < 2:
            if probe.answers is not (seen[-1] if seen else True):
                seen.append(probe.answers)
            await asyncio.sleep(0)
    running.cancel()
    assert seen == [False, True]
