"""Threads that work when told to, so that a test decides what is waiting, running and done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class ManualExecutor(Executor):
    """An executor without threads: what is handed in runs when the test says so, in the order it chooses."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._handed_in = asyncio.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        self._handed_in.set()
        return future

    async def until(self, n_waiting: int) -> None:
        """Wait until as many have been handed in and not run."""
        while len(self.waiting) < n_waiting:
            self._handed_in.clear()
            await self._handed_in.wait()

    def run(self, place: int = 0) -> None:
        """Run one of those that wait."""
        future, work = self.waiting.pop(place)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    async def run_all(self) -> None:
        """Run whatever is handed in until nothing more comes."""
        await settle()
        while self.waiting:
            self.run()
            await settle()


async def settle() -> None:
    """Let every task that can go on do so; enough turns for a chain of a dozen awaits."""
    for _ in range(30):
        await asyncio.sleep(0)
