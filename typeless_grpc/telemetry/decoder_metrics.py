"""Metrics of the processes that decode containers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from typeless_grpc.audio.sandbox.failures import Failure


class DecoderMetrics:
    """A `DecoderObserver` that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter(
            "typeless_decoder_failures_total",
            "Decoder processes that crashed, hung, needed too much, or were killed, by reason.",
            ("reason",),
            registry=registry,
        )
        for failure in Failure:
            self.failures.labels(failure.value)

    def decoder_failed(self, reason: str) -> None:
        """See `DecoderObserver`."""
        self.failures.labels(reason).inc()
