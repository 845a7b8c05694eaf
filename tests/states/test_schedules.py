"""The seeded event loop: one seed is one schedule, and other seeds find what one schedule hides."""

from __future__ import annotations

import asyncio

import pytest

from tests.states.seeded import Deadlock, explore, run, schedule


class LostUpdates:
    """Two tasks that each read a number, and write it back plus one."""

    def __init__(self) -> None:
        self.n = 0

    async def add(self) -> None:
        before = self.n
        await asyncio.to_thread(len, "")
        self.n = before + 1


async def both_count() -> None:
    counter = LostUpdates()
    async with asyncio.TaskGroup() as group:
        group.create_task(counter.add())
        group.create_task(one_second_later(counter))
    assert counter.n == 2


async def one_second_later(counter: LostUpdates) -> None:
    await asyncio.sleep(0.9)  # so that most schedules hide the fault
    await counter.add()


async def order() -> tuple[list[int], float]:
    went: list[int] = []

    async def go(n: int) -> None:
        for _ in range(3):
            await asyncio.to_thread(went.append, n)

    await asyncio.gather(*(go(n) for n in range(4)))
    return went, schedule().time()


def test_a_seed_is_a_schedule():
    assert run(order(), 7) == run(order(), 7)
    assert len({tuple(run(order(), seed)[0]) for seed in range(20)}) == 20


def test_a_race_is_found_and_its_seed_is_shown(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError) as caught:
        explore(both_count, range(100))
    (note,) = caught.value.__notes__
    seed = note.split()[1].rstrip(":")
    assert int(seed) > 0  # other schedules hide it
    monkeypatch.setenv("SCHEDULE_SEED", seed)
    with pytest.raises(AssertionError):
        explore(both_count, range(0))


def test_time_is_that_of_the_schedule():
    async def sleep_for_a_day() -> float:
        began_s = schedule().time()
        await asyncio.sleep(86_400)
        return schedule().time() - began_s

    assert run(sleep_for_a_day(), 0) == pytest.approx(86_400)


def test_a_deadlock_is_found():
    with pytest.raises(Deadlock):
        run(asyncio.Event().wait(), 0)


def test_callbacks_keep_their_order():
    async def called() -> list[int]:
        loop, numbers = asyncio.get_running_loop(), list[int]()
        for n in range(20):
            loop.call_soon(numbers.append, n)
        await asyncio.sleep(1)
        return numbers

    assert [run(called(), seed) for seed in range(5)] == [list(range(20))] * 5
