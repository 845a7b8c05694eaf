"""Measures how late the event loop is. Each call and stream waits at least as long."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

EVERY_S = 0.25
LAGS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopLag:
    """Measures by how much a short sleep is longer than it should be."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag = Histogram(
            "typeless_event_loop_lag_seconds",
            "By how much the event loop was late, four times a second.",
            buckets=LAGS_S,
            registry=registry,
        )

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self.lag.observe(max(0.0, loop.time() - due_s))
