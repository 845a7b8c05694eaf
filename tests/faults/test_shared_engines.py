"""Two servers that share one engine: priorities, fairness, deadlines and cancellation hold for both together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests import scripted_engine
from tests.scripted_engine import begun, options, release, speech, until
from tests.servers import free_port
from typeless_grpc.app.engines import Connected
from typeless_grpc.clock import SystemClock
from typeless_grpc.engine.interface import Chunking, Lane, Ticket
from typeless_grpc.engines import servicer
from typeless_grpc.errors import DeadlineExceeded, Overloaded

KEY = "a-key-of-more-than-20-characters"
CLOCK = SystemClock()


@dataclass
class Shared:
    """An engine that decodes one window at a time, and its fronts."""

    fronts: list[Connected]
    journal: Path

    async def decode(self, front: int, prompt: str, lane: Lane = Lane.UNARY, caller: str = "") -> None:
        await self.fronts[front].group.recognize(speech(0.5), options(prompt), Ticket(lane, caller))

    def begin(self, front: int, *prompts: str, lane: Lane = Lane.UNARY, caller: str = "") -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.decode(front, prompt, lane, caller)) for prompt in prompts]

    async def occupied(self, front: int = 0) -> list[asyncio.Task[None]]:
        """Let the engine begin a decode, which ends with `release`."""
        tasks = self.begin(front, "wait")
        await until(lambda: "wait" in self.begun)
        return tasks

    async def queued(self, **n_by_lane: int) -> None:
        """Wait until the engine's queue has these numbers of windows, by lane."""
        group = self.fronts[0].group
        await until(lambda: all(group.n_queued(Lane[name]) == n for name, n in n_by_lane.items()))

    @property
    def begun(self) -> list[str]:
        return list(begun(self.journal))


@pytest_asyncio.fixture
async def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shared]:
    monkeypatch.setenv(scripted_engine.JOURNAL, str(tmp_path / "journal"))
    address = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scripted_engine.on_port(engine_listen=address, engine_key=KEY))
        fronts = [
            await stack.enter_async_context(scripted_engine.group(engine_address=[address], engine_key=KEY))
            for _ in range(2)
        ]
        yield Shared(fronts, tmp_path / "journal")


async def test_live_speech_of_one_front_goes_before_the_batch_work_of_the_other(shared: Shared):
    tasks = await shared.occupied()
    tasks += shared.begin(0, *(f"batch {number}" for number in range(6)), lane=Lane.BATCH)
    tasks += shared.begin(1, "interim", lane=Lane.LIVE_INTERIM)
    tasks += shared.begin(1, "final", lane=Lane.LIVE_FINAL)
    await shared.queued(BATCH=6, LIVE_INTERIM=1, LIVE_FINAL=1)
    release()
    await asyncio.gather(*tasks)
    assert shared.begun[:3] == ["wait", "final", "interim"]


async def test_callers_of_two_fronts_share_the_engine_and_a_caller_on_both_counts_once(shared: Shared):
    tasks = await shared.occupied()
    tasks += shared.begin(0, *(f"eager {number}" for number in range(6)), caller="eager")
    tasks += shared.begin(1, "eager too", caller="eager")
    tasks += shared.begin(1, *(f"modest {number}" for number in range(2)), caller="modest")
    await shared.queued(UNARY=9)
    release()
    await asyncio.gather(*tasks)
    served = [prompt.partition(" ")[0] for prompt in shared.begun[1:]]
    assert sorted(served[:2]) == sorted(served[2:4]) == ["eager", "modest"]
    assert served[4:] == ["eager"] * 5


async def test_a_call_that_cannot_meet_its_deadline_is_refused_at_once(shared: Shared):
    await asyncio.gather(*shared.begin(0, "slow 0"))  # measures the pace
    tasks = await shared.occupied()
    tasks += shared.begin(0, *(f"slow {number}" for number in range(1, 101)))  # 40 s of work
    await until(lambda: shared.fronts[1].group.backlog_s > 30.0)  # what streams are paced by
    deadline_s = CLOCK.now_s() + 20.0
    with pytest.raises(DeadlineExceeded) as refusal:
        await shared.fronts[1].group.transcribe(speech(0.5), options("late"), Ticket(deadline_s=deadline_s))
    assert CLOCK.now_s() < deadline_s - 10.0
    assert "with the wait" in str(refusal.value)
    for task in tasks:
        task.cancel()
    release()
    await asyncio.gather(*tasks, return_exceptions=True)
    await shared.decode(1, "next")
    assert "late" not in shared.begun


async def test_a_call_that_must_be_alone_does_not_keep_others_waiting_for_long(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(servicer, "MAX_QUIET_WAIT_S", 0.5)

    async def alone() -> None:
        (engine,) = shared.fronts[0].engines
        await engine.recognize(speech(0.5), options("alone"), Ticket(), is_alone=True)

    tasks = await shared.occupied(1)
    waiting = asyncio.create_task(alone())
    await until(lambda: shared.fronts[1].engines[0].is_reserved)
    tasks += shared.begin(1, "next")
    with pytest.raises(Overloaded) as refusal:
        await waiting
    assert refusal.value.reason == "RESERVED"
    release()
    await asyncio.gather(*tasks)
    await alone()
    assert shared.begun == ["wait", "next", "alone"]


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_call_that_nobody_waits_for_leaves_the_engine_between_its_windows(how: str, shared: Shared):
    deadline_s = CLOCK.now_s() + 2.0 if how == "late" else None
    recording = speech(*[9.0] * 20)
    wanted = options("slow recording", chunking=Chunking.VAD)
    call = asyncio.create_task(shared.fronts[0].group.transcribe(recording, wanted, Ticket(deadline_s=deadline_s)))
    await until(lambda: shared.begun)
    if how == "cancelled":
        call.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else DeadlineExceeded):
        await call
    await shared.decode(1, "next")
    assert shared.begun[-1] == "next"
    # Of 20 windows. One may begin before the engine has the cancellation.
    assert shared.begun.count("slow recording") < 10
