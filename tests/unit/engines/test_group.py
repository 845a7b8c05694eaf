"""Turns of calls that may crash an engine."""

from __future__ import annotations

import asyncio

from tests.unit.idle import until_idle
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engines.group import Turns


async def test_one_call_at_a_time_has_its_turn_the_most_urgent_first():
    turns, order = Turns(), list[str]()
    leave = asyncio.Event()

    async def take(name: str, lane: Lane) -> None:
        async with turns.turn(lane):
            order.append(name)
            await leave.wait()

    tasks = [
        asyncio.create_task(take(name, lane))
        for name, lane in (("first", Lane.JOBS), ("job", Lane.JOBS), ("call", Lane.UNARY), ("final", Lane.LIVE_FINAL))
    ]
    await until_idle()
    assert (order, turns.is_taken, turns.n_waiting) == (["first"], True, 4)
    tasks[2].cancel()
    await until_idle()
    assert turns.n_waiting == 3
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["first", "final", "job"]
    assert (turns.is_taken, turns.n_waiting) == (False, 0)


async def test_a_call_that_is_cancelled_when_its_turn_comes_hands_it_on():
    turns, order = Turns(), list[str]()
    leave = asyncio.Event()

    async def take(name: str) -> None:
        async with turns.turn(Lane.UNARY):
            order.append(name)
            await leave.wait()

    tasks = [asyncio.create_task(take(str(number))) for number in range(3)]
    await until_idle()
    leave.set()

    async def cancel_at_once() -> None:
        tasks[1].cancel()

    # The first one ends in this step of the loop, and the second one is cancelled before it runs.
    await asyncio.gather(tasks[0], cancel_at_once())
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["0", "2"]
    assert not turns.is_taken
