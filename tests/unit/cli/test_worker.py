from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from typeless_grpc.app import starting
from typeless_grpc.cli import worker
from typeless_grpc.config import Settings

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Jobs:
    """What a worker builds; it gets a signal to stop while that takes for ever, or once it runs jobs."""

    def __init__(self, number: signal.Signals, *, has_begun: bool) -> None:
        self.number, self.has_begun = number, has_begun
        self.is_handed_back = self.is_given_up = False

    @asynccontextmanager
    async def build(self, _settings: Settings) -> AsyncIterator[None]:
        signal.raise_signal(self.number)
        if not self.has_begun:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.is_given_up = True
                raise
        yield
        self.is_handed_back = True


@pytest.fixture
def ends_within(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(worker, "end_within", seconds.append)
    return seconds


@pytest.mark.parametrize("number", STOPS)
async def test_a_stopped_worker_hands_its_jobs_back(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, ends_within: list[float]
):
    jobs = Jobs(number, has_begun=True)
    monkeypatch.setattr(starting, "build_worker", jobs.build)
    await asyncio.wait_for(worker._work(Settings()), 5)
    assert (jobs.is_handed_back, ends_within) == (True, [])


@pytest.mark.parametrize("number", STOPS)
async def test_a_worker_stopped_before_it_has_jobs_ends_at_once(
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    ends_within: list[float],
    capsys: pytest.CaptureFixture[str],
):
    jobs = Jobs(number, has_begun=False)
    monkeypatch.setattr(starting, "build_worker", jobs.build)
    await asyncio.wait_for(worker._work(Settings()), 5)
    assert (jobs.is_given_up, ends_within, capsys.readouterr().out) == (True, [worker.STARTING_S], "")
