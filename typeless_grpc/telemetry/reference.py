"""The reference of all metrics, as Markdown: `python -m typeless_grpc.telemetry.reference` prints docs/metrics.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase

from typeless_grpc.jobs.store import QueueStats
from typeless_grpc.telemetry.job_metrics import StoredJobs
from typeless_grpc.telemetry.metrics import Metrics

HEAD = """# Metrics

`TYPELESS_METRICS_PORT` opens a port on which Prometheus reads metrics, on a server and on a worker. It is off by
default, and listens on loopback unless `TYPELESS_METRICS_HOST` says otherwise. The names are those of OpenMetrics; the
`grpc_server_*` metrics are those of go-grpc-prometheus, so existing dashboards work. Besides these there are the
`process_*` metrics of the Prometheus client. No label comes from a caller, so callers cannot create series.

A worker has no calls and no streams. `typeless_jobs`, `typeless_oldest_pending_job_seconds`, `typeless_workers`,
`typeless_job_slots` and `typeless_stored_bytes` describe the database, so all processes that share it show the same:
use `max`, not `sum`. They are absent while the database does not answer.

| Metric | Type | Labels | Meaning |
| --- | --- | --- | --- |
"""


def reference() -> str:
    """Return the page. A test compares it with docs/metrics.md."""
    return HEAD + "".join(sorted(_rows(_complete())))


def _complete() -> Metrics:
    """Return metrics to which everything has been added that a server adds."""
    metrics = Metrics()
    stored = StoredJobs(QueueStats({}, 0, 0, None), 0)
    metrics.watch_admission(lambda: 0.0, lambda: 0.0)
    metrics.watch_health(lambda: {"": True})
    metrics.watch_certificate(lambda: 0.0)
    metrics.engine.watch_queue(lambda lane: 0)
    metrics.engine.watch_engine(lambda: 0.0, lambda: 0.0)
    metrics.engine.watch_models(lambda: {"": 0})
    metrics.engine.watch_engines(lambda: {"": True})
    metrics.streams.watch(lambda: 0, lambda: 0)
    metrics.jobs.watch_store(lambda: stored, lambda: True)
    return metrics


def _rows(metrics: Metrics) -> Iterator[str]:
    labels = _labels(metrics)
    for family in metrics.registry.collect():
        if family.name.startswith(("typeless_", "grpc_")):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown = ", ".join(f"`{label}`" for label in labels.get(family.name) or _labels_of(family))
            yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |\n"


def _labels(metrics: Metrics) -> dict[str, tuple[str, ...]]:
    """Return the labels of metrics that may have no series yet, by family."""
    parts = (metrics, *(part for part in vars(metrics).values() if hasattr(part, "__dict__")))
    found = [one for part in parts for one in vars(part).values() if isinstance(one, MetricWrapperBase)]
    return {family.name: one._labelnames for one in found for family in one.describe()}


def _labels_of(family: Metric) -> list[str]:
    return [name for name in (family.samples[0].labels if family.samples else {}) if name != "le"]


if __name__ == "__main__":
    sys.stdout.write(reference())
