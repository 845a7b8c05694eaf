"""Schedules of the async parts that follow from a seed, so that a failure can be repeated.

The libraries for this (simloop, simloom) need Python 3.12, and async-solipsism has a virtual clock but one schedule.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

# How long work of an executor takes, in seconds of the virtual clock: both its start and its answer wait so long.
DELAYS_S = (0.0, 0.0, 0.001, 0.02, 0.5)


class Deadlock(AssertionError):
    """All tasks wait for something that cannot happen."""


class _NoSelector(selectors.SelectSelector):
    """Waits for nothing outside: where the loop would block, it tells how long."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: Callable[[float | None], None] = lambda _: None

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            self.waited(timeout)
        return []


class SeededEventLoop(asyncio.SelectorEventLoop):
    """An event loop whose schedule and clock follow from a seed; it has no threads and no I/O.

    Of the tasks that can go on, one goes on, chosen at random. Callbacks that are no tasks keep their order, as asyncio
    promises. When none can go on, the clock moves to the next timer. Work of executors runs in the loop: its start and
    its answer are delayed at random, so work that is cancelled may have been done.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._now_s = 1000.0
        self._waiting: list[tuple[Context, Callable[..., Any], tuple[Any, ...]]] = []  # tasks that can go on
        selector = _NoSelector()
        selector.waited = self._wait
        super().__init__(selector)

    def time(self) -> float:
        return self._now_s

    def now_s(self) -> float:
        """See `Clock`: the clock of this loop."""
        return self._now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()

        def start() -> None:
            if done.done():  # cancelled before it began
                return
            try:
                result = func(*args)
            except BaseException as error:
                self.call_later(self._delay_s(), answer, None, error)
            else:
                self.call_later(self._delay_s(), answer, result, None)

        def answer(result: Any, error: BaseException | None) -> None:
            if not done.done():
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(result)

        self.call_later(self._delay_s(), start)
        return done

    def _delay_s(self) -> float:
        return self.random.choice(DELAYS_S)

    def _wait(self, timeout: float | None) -> None:
        if timeout is None:
            raise Deadlock(f"nothing can go on: {[task.get_name() for task in asyncio.all_tasks(self)]}")
        self._now_s += timeout

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        if not isinstance(getattr(callback, "__self__", None), asyncio.Task):
            return super().call_soon(callback, *args, context=context)
        self._waiting.append((context or copy_context(), callback, args))
        return super().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Let one of the waiting tasks go on; sometimes only after other callbacks."""
        if self.random.random() < 0.2:
            super().call_soon(self._go_on)
            return
        context, callback, args = self._waiting.pop(self.random.randrange(len(self._waiting)))
        context.run(callback, *args)


def run(scenario: Coroutine[Any, Any, T], seed: int) -> T:
    """Run a coroutine with the schedule of a seed."""
    with asyncio.Runner(loop_factory=lambda: SeededEventLoop(seed)) as runner:
        return runner.run(scenario)


def schedule() -> SeededEventLoop:
    """The loop that runs, for its clock and its random choices."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SeededEventLoop)
    return loop


class Explored:
    """How many schedules were run."""

    n_schedules = 0


def explore(scenario: Callable[[], Coroutine[Any, Any, None]], seeds: int | range) -> None:
    """Run a scenario under so many schedules, new ones each time, or those of given seeds. A failure shows its seed.

    SCHEDULE_SEED=N runs that one alone.
    """
    alone = os.environ.get("SCHEDULE_SEED")
    if isinstance(seeds, int):
        first = random.SystemRandom().randrange(2**32)
        seeds = range(first, first + seeds)
    for seed in [int(alone)] if alone else seeds:
        Explored.n_schedules += 1
        try:
            run(scenario(), seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: SCHEDULE_SEED={seed} runs this schedule alone")
            raise
