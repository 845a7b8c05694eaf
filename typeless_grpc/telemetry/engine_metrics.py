"""Metrics of the engine: its queue, its batches, the time of its model, and what it decodes again or suppresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from typeless_grpc.engine.decoding.quality import Issue
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.observer import BatchReport
from typeless_grpc.speech.transcript import SuppressionReason
from typeless_grpc.telemetry.gauges import add_gauge, add_gauges

WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
STAGES = ("encode", "decode", "align", "detect_language", "decode_with_fallback")
REFUSALS = ("OVERLOADED", "DEADLINE_CANNOT_BE_MET")
RETRIES = (*(issue.value for issue in Issue), "hints", "uncovered", "language")

RESTARTS = ("exited", "silent", "stalled", "not ready")


def lane_label(lane: Lane) -> str:
    """Return the label of a lane."""
    return lane.name.lower()


class EngineMetrics:
    """An `EngineObserver` that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.waits = Histogram(
            "typeless_queue_wait_seconds",
            "How long windows waited in the inference queue, by lane.",
            ("lane",),
            buckets=WAITS_S,
            registry=registry,
        )
        self.sizes = Histogram(
            "typeless_batch_windows", "Windows in a batch of the model.", buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "typeless_batch_seconds", "How long batches took.", buckets=WAITS_S, registry=registry
        )
        self.stages = Counter(
            "typeless_model_seconds_total",
            "Time of the model by stage: the encoder is `encode`, the decoder is `decode`.",
            ("stage",),
            registry=registry,
        )
        self.refusals = Counter(
            "typeless_windows_refused_total",
            "Windows that were not decoded, by lane and reason: the queue was full, the deadline passed, and others.",
            ("lane", "reason"),
            registry=registry,
        )
        self.retries = Counter(
            "typeless_retries_total", "Chunks that were decoded again, by reason.", ("reason",), registry=registry
        )
        self.suppressions = Counter(
            "typeless_suppressed_segments_total",
            "Segments suppressed as hallucinations, by reason.",
            ("reason",),
            registry=registry,
        )
        self.engine_restarts = Counter(
            "typeless_engine_restarts_total",
            "Engine processes that were started again, by reason.",
            ("reason",),
            registry=registry,
        )
        self.engine_retries = Counter(
            "typeless_engine_retries_total",
            "Calls that were decoded again because their engine was lost.",
            registry=registry,
        )
        # Looking a metric up by its labels takes longer than counting.
        self._waits = {lane: self.waits.labels(lane_label(lane)) for lane in Lane}
        self._stages = {stage: self.stages.labels(stage) for stage in STAGES}
        for restart in RESTARTS:
            self.engine_restarts.labels(restart)
        for lane in Lane:
            for refusal in REFUSALS:
                self.refusals.labels(lane_label(lane), refusal)
        for reason in RETRIES:
            self.retries.labels(reason)
        for suppression in SuppressionReason:
            self.suppressions.labels(suppression.value)

    def watch_queue(self, n_queued: Callable[[Lane], int]) -> None:
        """Show the depth of the queue."""
        add_gauges(
            self._registry,
            "typeless_queue_depth",
            "Windows in the inference queue, by lane.",
            ("lane",),
            lambda: {(lane_label(lane),): n_queued(lane) for lane in Lane},
        )

    def watch_engine(self, backlog_s: Callable[[], float], stalled_s: Callable[[], float]) -> None:
        """Show how far the engine is behind, and how long it has made no progress."""
        add_gauge(
            self._registry, "typeless_engine_backlog_seconds", "How long a new window would wait, estimated.", backlog_s
        )
        add_gauge(
            self._registry,
            "typeless_engine_stalled_seconds",
            "Seconds since a batch ended, while there is work; 0 if there is none.",
            stalled_s,
        )

    def watch_models(self, memory_bytes: Callable[[], Mapping[str, int]]) -> None:
        """Show the loaded models. memory_bytes: by name."""
        add_gauges(
            self._registry,
            "typeless_model_memory_bytes",
            "Memory of each loaded model, as estimated from its files.",
            ("model",),
            lambda: {(name,): n_bytes for name, n_bytes in memory_bytes().items()},
        )

    def watch_engines(self, are_up: Callable[[], Mapping[str, bool]]) -> None:
        """Show which engines are up, of a server that decodes nothing itself. are_up: by name."""
        add_gauges(
            self._registry,
            "typeless_engine_up",
            "Whether an engine process, or an engine on another machine, takes calls.",
            ("engine",),
            lambda: {(name,): float(is_up) for name, is_up in are_up().items()},
        )

    def engine_restarted(self, engine: str, reason: str) -> None:
        """Count the restart of an engine process."""
        self.engine_restarts.labels(reason).inc()

    def batch_ended(self, batch: BatchReport) -> None:
        """See `EngineObserver`."""
        self.sizes.observe(len(batch.windows))
        self.batch_seconds.observe(batch.ended_s - batch.started_s)
        for window in batch.windows:
            self._waits[window.lane].observe(max(0.0, batch.started_s - window.submitted_s))
        for stage in batch.stages:
            self._stages[stage.name].inc(stage.seconds)

    def refused(self, lane: Lane, reason: str) -> None:
        """See `EngineObserver`."""
        self.refusals.labels(lane_label(lane), reason).inc()

    def decoded_again(self, reason: str) -> None:
        """See `EngineObserver`."""
        self.retries.labels(reason).inc()

    def suppressed(self, reason: str) -> None:
        """See `EngineObserver`."""
        self.suppressions.labels(reason).inc()
