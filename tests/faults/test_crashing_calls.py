"""Calls that crash engines: they fail, however many they are, and the calls beside them never do.

The engines are forked processes on addresses, started again as soon as they have ended.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import scripted_engine
from tests.scripted_engine import begun, count, options, speech, text_of, until
from tests.servers import free_port
from typeless_grpc.app.engines import Connected
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import EngineFailed, Overloaded
from typeless_grpc.telemetry import logs
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.telemetry.metrics import Metrics

KEY = "a-key-of-more-than-20-characters"
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.scripted_engine"])


def serve(port: int, journal: str) -> None:
    """Be an engine until killed."""
    os.environ[scripted_engine.JOURNAL] = journal
    logs.configure("error", "json")

    async def run() -> None:
        async with scripted_engine.on_port(engine_listen=f"127.0.0.1:{port}", engine_key=KEY):
            await asyncio.Event().wait()

    asyncio.run(run())


class Engines:
    """Engines that are started again when they have ended."""

    def __init__(self, n: int, journal: Path) -> None:
        self.ports = [free_port() for _ in range(n)]
        self.n_ended = 0
        self._journal = journal
        self._processes = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> BaseProcess:
        process = FORKSERVER.Process(target=serve, args=(port, str(self._journal)))
        process.start()
        return process

    async def keep(self) -> None:
        while True:
            for index, process in enumerate(self._processes):
                if not process.is_alive():
                    self.n_ended += 1
                    self._processes[index] = self._start(self.ports[index])
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def kill(self, index: int) -> None:
        pid = self._processes[index].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def front(engines: Engines, metrics: EngineMetrics | None = None) -> AsyncIterator[Connected]:
    addresses = [f"127.0.0.1:{port}" for port in engines.ports]
    async with scripted_engine.group(metrics, engine_address=addresses, engine_key=KEY, engine_stall_s=5.0) as parts:
        await until(lambda: all(engine.is_up for engine in parts.engines))
        yield parts


@asynccontextmanager
async def running(n: int, journal: Path) -> AsyncIterator[Engines]:
    engines = Engines(n, journal)
    keeping = asyncio.create_task(engines.keep())
    try:
        yield engines
    finally:
        keeping.cancel()
        engines.stop()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def text(parts: Connected, prompt: str, lane: Lane = Lane.UNARY, caller: str = "") -> str:
    return text_of(await parts.group.recognize(speech(0.5), options(prompt), Ticket(lane, caller)))


async def crashed(parts: Connected, prompt: str, lane: Lane = Lane.UNARY) -> None:
    with pytest.raises(EngineFailed) as failure:
        await text(parts, prompt, lane)
    assert failure.value.reason == "ENGINE_CRASHED"
    assert not failure.value.retryable


@pytest.mark.parametrize("n_engines", [1, 2])
async def test_only_the_calls_that_crash_engines_fail(n_engines: int, journal: Path):
    metrics = Metrics().engine
    async with running(n_engines, journal) as engines, front(engines, metrics) as parts:
        lanes = list(Lane)
        innocents = [f"slow {number}" for number in range(8)]
        calls = [
            asyncio.create_task(
                text(parts, prompt, Lane.LIVE_FINAL if number % 2 else Lane.JOBS, f"caller {number % 3}")
            )
            for number, prompt in enumerate(innocents)
        ]
        await until(lambda: begun(journal))
        bad = [asyncio.create_task(crashed(parts, f"die {number}", lanes[2 + number % 3])) for number in range(3)]
        late = [asyncio.create_task(text(parts, f"late {number}")) for number in range(4)]
        assert await asyncio.gather(*calls) == innocents
        assert await asyncio.gather(*late) == [f"late {number}" for number in range(4)]
        await asyncio.gather(*bad)
        assert await text(parts, "after") == "after"
    n_begun = Counter(begun(journal))
    # Each crashes one engine beside others at most, and two when it is alone.
    assert all(2 <= n_begun[f"die {number}"] <= 3 for number in range(3))
    assert count(metrics.engine_retries) >= 8


async def test_a_call_that_crashes_the_engines_of_one_front_does_not_fail_those_of_another(journal: Path):
    async with running(1, journal) as engines, front(engines) as one, front(engines) as two:
        others = [asyncio.create_task(text(two, f"slow {number}", caller="other")) for number in range(6)]
        await until(lambda: begun(journal))
        await asyncio.gather(*(crashed(one, f"die {number}") for number in range(2)))
        assert await asyncio.gather(*others) == [f"slow {number}" for number in range(6)]
        assert await asyncio.gather(text(one, "a"), text(two, "b")) == ["a", "b"]


async def test_a_call_whose_engines_are_killed_is_not_blamed_while_it_waits_for_its_turn(journal: Path):
    async with running(2, journal) as engines, front(engines) as parts:
        calls = [asyncio.create_task(text(parts, f"busy {number}")) for number in range(2)]
        await until(lambda: len(begun(journal)) == 2)
        for _ in range(2):
            n_begun = len(begun(journal))
            engines.kill(0)
            engines.kill(1)
            await until(lambda n_begun=n_begun: len(begun(journal)) > n_begun)  # type: ignore[misc]
        # One of the two was alone on an engine that was killed, once; that is not enough to blame it.
        assert sorted(await asyncio.gather(*calls)) == ["busy 0", "busy 1"]


async def test_interims_that_crash_engines_stop(journal: Path):
    async with running(2, journal) as engines, front(engines) as parts:
        for number in range(2):
            await until(lambda: all(engine.is_up for engine in parts.engines))
            with pytest.raises(Overloaded):
                await text(parts, f"die {number}", Lane.LIVE_INTERIM, "bad")
        await until(lambda: engines.n_ended == 2 and all(engine.is_up for engine in parts.engines))
        with pytest.raises(Overloaded) as refusal:
            await text(parts, "die 3", Lane.LIVE_INTERIM, "bad")
        assert refusal.value.reason == "INTERIM_DROPPED"
        assert await text(parts, "hello", Lane.LIVE_INTERIM, "good") == "hello"
        assert engines.n_ended == 2
    assert "die 3" not in begun(journal)
