"""Metrics of streams: sessions, interims, and how long finals take."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context

from prometheus_client import CollectorRegistry, Counter, Histogram

from typeless_grpc.telemetry.gauges import add_gauge

LATENCIES_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
SESSION_EVENTS = ("opened", "resumed", "expired", "evicted", "handed_over")
INTERIM_OUTCOMES = ("sent", "skipped", "dropped", "unread")
MODES = ("live", "file")


class StreamMetrics:
    """A `StreamObserver` that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.sessions = Counter(
            "typeless_sessions_total",
            "Sessions opened, resumed, expired, evicted, and handed over to another server.",
            ("event",),
            registry=registry,
        )
        self.interims = Counter(
            "typeless_interims_total",
            "Interims sent, skipped for a newer one, dropped by a busy engine, or left unread by a slow caller.",
            ("outcome",),
            registry=registry,
        )
        self.finals = Counter("typeless_finals_total", "Finals released, by mode.", ("mode",), registry=registry)
        self.latency = Histogram(
            "typeless_final_latency_seconds",
            "From the arrival of the audio of the end of speech to its final, by mode.",
            ("mode",),
            buckets=LATENCIES_S,
            registry=registry,
        )
        for event in SESSION_EVENTS:
            self.sessions.labels(event)
        for outcome in INTERIM_OUTCOMES:
            self.interims.labels(outcome)
        for mode in MODES:
            self.finals.labels(mode)
            self.latency.labels(mode)

    def watch(self, n_open: Callable[[], int], n_all: Callable[[], int]) -> None:
        """Show the sessions. n_open: with a call; n_all: also those that wait to be resumed."""
        add_gauge(self._registry, "typeless_streams_open", "Streams with a call now.", n_open)
        add_gauge(
            self._registry,
            "typeless_sessions_kept",
            "Sessions without a call, which can be resumed.",
            lambda: n_all() - n_open(),
        )

    def session(self, event: str) -> None:
        """See `StreamObserver`."""
        self.sessions.labels(event).inc()

    def interim(self, outcome: str) -> None:
        """See `StreamObserver`."""
        self.interims.labels(outcome).inc()

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        """See `StreamObserver`."""
        self.finals.labels(mode).inc()
        if latency_s is not None:
            self.latency.labels(mode).observe(max(0.0, latency_s))
