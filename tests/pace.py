"""A wait in which others get their turn, also on a machine that stalls."""

from __future__ import annotations

import asyncio
from typing import Any

TICK_S = 0.05


async def awake(seconds: float, *futures: asyncio.Future[Any]) -> None:
    """Wait while the event loop runs for some seconds, or until these futures are done.

    If a machine stalls in a plain `sleep`, nothing else runs in it. Here a stall is one tick of many.
    """
    for _ in range(round(seconds / TICK_S)):
        if futures and all(future.done() for future in futures):
            return
        await asyncio.sleep(TICK_S)
