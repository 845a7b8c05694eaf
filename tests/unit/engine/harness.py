"""An executor whose work runs when the test says so, which decides what waits, what runs and what is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from tests.unit.idle import until_idle


class ManualExecutor(Executor):
    """An executor without threads: submitted work runs when the test calls `run`, in the order it chooses."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._submitted = asyncio.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        self._submitted.set()
        return future

    async def until(self, n_waiting: int) -> None:
        """Wait until this many requests are submitted and have not run yet."""
        while len(self.waiting) < n_waiting:
            self._submitted.clear()
            await self._submitted.wait()

    def run(self, index: int = 0) -> None:
        """Run one of those that wait."""
        future, work = self.waiting.pop(index)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    async def run_all(self) -> None:
        """Run everything that is submitted until nothing more is."""
        await until_idle()
        while self.waiting:
            self.run()
            await until_idle()
