"""Time as a dependency, so that tests need not wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol


class Clock(Protocol):
    """A monotonic clock in seconds; its origin is arbitrary."""

    def now_s(self) -> float:
        """Return the seconds since the origin."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()


class FakeClock:
    """A clock for tests that moves only when `advance` is called."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """See `Clock`."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward; seconds must not be negative."""
        assert seconds >= 0
        self._now_s += seconds


async def ends_within(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    """Wait for work, and cancel it after the given time. Return whether it ended by itself."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
