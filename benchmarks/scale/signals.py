"""Waits for SIGTERM."""

from __future__ import annotations

import asyncio
import signal


async def terminated() -> None:
    """Return when this process is to end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
