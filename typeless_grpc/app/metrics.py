"""Opens the metrics port of a server or a worker."""

from __future__ import annotations

from contextlib import AsyncExitStack

from typeless_grpc.config import Settings
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.metrics_port import MetricsPort


def open_metrics_port(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> None:
    """Serve metrics until the stack closes, if the settings name a port. Raises SourceUnavailable."""
    if settings.metrics_port is not None:
        stack.callback(MetricsPort.open(metrics, settings.metrics_host, settings.metrics_port).close)
