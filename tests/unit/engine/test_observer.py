"""What the engine reports about its work."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest

from tests.unit.engine.scheduler_bench import serving
from tests.unit.idle import until_idle
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.observer import BatchReport, NoObserver, Stage
from typeless_grpc.engine.scripted_model import ScriptedModel
from typeless_grpc.engine.timed_model import TimedModel
from typeless_grpc.errors import DeadlineExceeded, Overloaded

CALL: ContextVar[str] = ContextVar("call", default="")


class Recorded(NoObserver):
    def __init__(self) -> None:
        self.batches: list[BatchReport] = []
        self.refusals: list[tuple[Lane, str]] = []

    def batch_ended(self, batch: BatchReport) -> None:
        self.batches.append(batch)

    def refused(self, lane: Lane, reason: str) -> None:
        self.refusals.append((lane, reason))


async def test_a_batch_is_reported_with_its_windows_and_the_contexts_of_their_calls():
    observer = Recorded()
    async with serving(observer=observer) as bench:
        bench.takes_s = 2.0
        running = await bench.busy()
        CALL.set("one")
        first = bench.submit("first", lane=Lane.UNARY)
        CALL.set("two")
        second = bench.submit("second", lane=Lane.UNARY)
        await until_idle()
        bench.clock.advance(1.0)
        await bench.threads.run_all()
        await running, await first, await second
    batch = observer.batches[-1]
    assert [window.context[CALL] for window in batch.windows] == ["one", "two"]
    assert [(window.lane, window.submitted_s, window.is_done) for window in batch.windows] == [
        (Lane.UNARY, 0.0, True),
        (Lane.UNARY, 0.0, True),
    ]
    assert (batch.started_s, batch.ended_s) == (3.0, 7.0)


async def test_windows_of_one_batch_share_the_time_of_its_model():
    observer = Recorded()
    async with serving(observer=observer) as bench:
        bench.stages = (Stage("encode", 0.0, 1.0), Stage("decode", 1.0, 3.0))
        running = await bench.busy()
        first, second = bench.submit("first"), bench.submit("second")
        await bench.threads.run_all()
        await running
        assert [one.timing.model_s for one in (await first, await second)] == [2.0, 2.0]
    assert [stage.name for stage in observer.batches[-1].stages] == ["encode", "decode"]


async def test_refusals_are_reported_with_their_reason():
    observer = Recorded()
    async with serving(observer=observer, max_queued=1) as bench:
        await bench.busy()
        waiting = bench.submit("waiting", deadline_s=5.0)
        await until_idle()
        with pytest.raises(Overloaded):
            await bench.submit("too many")
        bench.clock.advance(6.0)
        await bench.threads.run_all()
        with pytest.raises(DeadlineExceeded):
            await waiting
    assert [reason for _, reason in observer.refusals] == [Overloaded("").reason, DeadlineExceeded("").reason]


class SlowModel(ScriptedModel):
    """Takes a second of a clock for each encoding."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def encode(self, *args: Any) -> Any:
        self._clock.advance(1.0)
        return super().encode(*args)


def test_calls_of_one_operation_are_one_stage():
    import numpy as np

    clock = FakeClock()
    model = TimedModel(SlowModel(clock), clock)
    audio = np.zeros(16_000, np.float32)
    model.encode(audio, 1.0)
    clock.advance(0.5)
    model.encode(audio, 1.0)
    assert model.stages == (Stage("encode", 0.0, 2.0),)
