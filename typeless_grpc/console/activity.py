"""The server's activity as JSON: metrics for the page. They contain no data of callers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

GAUGES = (
    "typeless_streams_open",
    "typeless_sessions_kept",
    "typeless_queue_depth",
    "typeless_engine_backlog_seconds",
    "typeless_held_audio_seconds",
    "typeless_held_audio_limit_seconds",
)
HISTOGRAMS = ("typeless_queue_wait_seconds", "typeless_final_latency_seconds", "typeless_event_loop_lag_seconds")

Activity = Callable[[], dict[str, Any]]


def activity(registry: CollectorRegistry) -> Activity:
    """Return a function that reads the metrics.

    Its result has, by name and then by label ("" if there is none): `gauges`, with their value; `histograms`, with the
    count of observations since the start up to each bound, "+Inf" for all. `time` is in Unix seconds.
    """
    wanted = [*GAUGES, *(f"{name}_bucket" for name in HISTOGRAMS)]

    def read() -> dict[str, Any]:
        gauges: dict[str, dict[str, float]] = {}
        histograms: dict[str, dict[str, dict[str, float]]] = {}
        for family in registry.restricted_registry(wanted).collect():
            for sample in family.samples:
                labels = dict(sample.labels)
                if (bound := labels.pop("le", None)) is None:
                    gauges.setdefault(family.name, {})[_label(labels)] = sample.value
                else:
                    histograms.setdefault(family.name, {}).setdefault(_label(labels), {})[bound] = sample.value
        return {"time": time.time(), "gauges": gauges, "histograms": histograms}

    return read


def _label(labels: dict[str, str]) -> str:
    return next(iter(labels.values()), "")
