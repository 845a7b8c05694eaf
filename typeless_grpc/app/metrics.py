"""Opens the metrics port of a process, with the metrics that every kind of process has."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from typeless_grpc.app.tasks import cancelled
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import Engine
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.metrics_port import MetricsPort


def open_metrics(stack: AsyncExitStack, settings: Settings, metrics: Metrics, engine: Engine) -> None:
    """Show the engine and the event loop, and serve metrics if the settings name a port, until the stack closes.

    Raises SourceUnavailable if the address cannot be used.
    """
    metrics.engine.watch_engine(lambda: engine.backlog_s, lambda: engine.stalled_s)
    stack.push_async_callback(cancelled, asyncio.create_task(metrics.loop_lag.run(), name="loop-lag"))
    if settings.metrics_port is not None:
        stack.callback(MetricsPort.open(metrics, settings.metrics_host, settings.metrics_port).close)
