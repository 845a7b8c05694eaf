"""Tasks that live as long as what they serve."""

from __future__ import annotations

import asyncio


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it ends, however it ends."""
    task.cancel()
    await asyncio.wait([task])
