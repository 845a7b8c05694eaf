from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from typeless_grpc.app import starting
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.cli import worker
from typeless_grpc.config import Settings, load

STOPS = [signal.SIGTERM, signal.SIGINT]


class Jobs:
    """What a worker builds; a signal arrives while that takes for ever, or once it runs jobs."""

    def __init__(self, number: signal.Signals, *, has_started: bool) -> None:
        self.number, self.has_started = number, has_started
        self.is_returned = self.is_cancelled = False

    @asynccontextmanager
    async def build(self, settings: Settings) -> AsyncIterator[Reloads]:
        signal.raise_signal(self.number)
        if not self.has_started:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.is_cancelled = True
                raise
        yield Reloads(settings)
        self.is_returned = True


@pytest.fixture
def ends_within(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(worker, "end_within", seconds.append)
    return seconds


@pytest.mark.parametrize("number", STOPS)
async def test_a_signal_makes_a_worker_return_its_jobs(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, ends_within: list[float]
):
    jobs = Jobs(number, has_started=True)
    monkeypatch.setattr(starting, "build_worker", jobs.build)
    await asyncio.wait_for(worker.run_worker(Settings(), load), 30)
    assert (jobs.is_returned, ends_within) == (True, [])


@pytest.mark.parametrize("number", STOPS)
async def test_a_signal_before_a_worker_has_jobs_ends_it_at_once(
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    ends_within: list[float],
    capsys: pytest.CaptureFixture[str],
):
    jobs = Jobs(number, has_started=False)
    monkeypatch.setattr(starting, "build_worker", jobs.build)
    await asyncio.wait_for(worker.run_worker(Settings(), load), 30)
    assert (jobs.is_cancelled, ends_within, capsys.readouterr().out) == (True, [worker.STARTING_S], "")
