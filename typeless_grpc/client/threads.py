"""Iterating in a thread, for iterators that block: a microphone, a pipe, a file."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_WAITING = 600
"""Items that wait for the event loop: a minute of microphone."""

_CHECK_S = 0.5  # how often a thread that waits for room checks whether its loop is closed


class _Raised(Generic[T]):
    """An exception of the iterator, or None for its end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def from_thread(
    items: Generator[T, None, None], *, end_s: float = 0.0, max_waiting: int = MAX_WAITING
) -> AsyncGenerator[T, None]:
    """Iterate over a generator that blocks. A thread runs it; its exception is raised here.

    The thread closes the generator at its end, and at its next item after this one was closed. end_s: how long closing
    this one waits for that. max_waiting: the thread pauses while so many items wait.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | _Raised[T]] = asyncio.Queue()
    room = threading.Semaphore(max_waiting)
    stopped, ended = threading.Event(), asyncio.Event()

    def put(item: tuple[T] | _Raised[T]) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop is closed
            stopped.set()

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    while not room.acquire(timeout=_CHECK_S):
                        if loop.is_closed():
                            return
                    if stopped.is_set():
                        return
                    put((item,))
        except BaseException as error:
            put(_Raised(error))
        else:
            put(_Raised(None))
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, name="typeless audio", daemon=True).start()
    try:
        while isinstance(item := await queue.get(), tuple):
            room.release()
            yield item[0]
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        room.release()
        if end_s and not loop.is_closed():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(end_s):
                    await ended.wait()
