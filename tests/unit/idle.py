"""An event loop that tells when it is idle, so that a test can let all tasks run as far as they can."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _IdleSelector(selectors.DefaultSelector):
    """Resolves futures when the loop would block, which is when no callback is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.idle: list[asyncio.Future[None]] = []

    def select(self, timeout: float | None = None) -> Any:
        if self.idle and (timeout is None or timeout > 0):
            waiting, self.idle = self.idle, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            timeout = 0
        return super().select(timeout)


class IdleEventLoop(asyncio.SelectorEventLoop):
    """The event loop of all unit tests."""

    def __init__(self) -> None:
        self._idle_selector = _IdleSelector()
        self._in_threads: set[asyncio.Future[Any]] = set()
        super().__init__(self._idle_selector)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        work = super().run_in_executor(executor, func, *args)
        self._in_threads.add(work)
        work.add_done_callback(self._in_threads.discard)
        return work

    async def until_idle(self) -> None:
        """Wait until no task can go on without an event from outside: a thread, a socket or a timer."""
        future: asyncio.Future[None] = self.create_future()
        self._idle_selector.idle.append(future)
        await future

    async def until_threads_are_idle(self) -> None:
        """Wait until no task can go on, and no thread works for one."""
        await self.until_idle()
        while self._in_threads:
            await asyncio.wait(self._in_threads)
            await self.until_idle()


async def until_idle() -> None:
    """Wait until all tasks of this loop wait for something outside of it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, IdleEventLoop)
    await loop.until_idle()


async def until_threads_are_idle() -> None:
    """Wait until all tasks of this loop wait for something outside of it that is not the work of a thread."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, IdleEventLoop)
    await loop.until_threads_are_idle()


async def steps(n: int) -> None:
    """Let the event loop run all ready callbacks, n times."""
    loop = asyncio.get_running_loop()
    for _ in range(n):
        stepped: asyncio.Future[None] = loop.create_future()
        loop.call_soon(stepped.set_result, None)
        await stepped


def run_until_complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on such a loop, as `asyncio.run` does: for tests of properties, which cannot be coroutines."""
    with asyncio.Runner(loop_factory=IdleEventLoop) as runner:
        return runner.run(work)
