"""All metrics of a process; Prometheus reads them on the port of `metrics_port.py`.

The `grpc_server_*` names are those of go-grpc-prometheus, which existing dashboards use. Labels come from the contract
and from our own tables, never from callers, so that callers cannot create metrics without bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector

from typeless_grpc.access.methods import Group
from typeless_grpc.telemetry.call_metrics import AudioMetrics, CallMetrics
from typeless_grpc.telemetry.decoder_metrics import DecoderMetrics
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.telemetry.gauges import add_gauge, add_gauges
from typeless_grpc.telemetry.job_metrics import JobMetrics
from typeless_grpc.telemetry.loop_lag import LoopLag
from typeless_grpc.telemetry.stream_metrics import StreamMetrics
from typeless_grpc.version import VERSION


class Metrics:
    """All metrics of one process, in their own registry. The parts are observers of the calls, the engine and so on."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("typeless_build_info", "Always 1.", ("version",), registry=registry).labels(VERSION).set(1)
        self.audio = AudioMetrics(registry)
        self.calls = CallMetrics(registry, self.audio)
        self.decoders = DecoderMetrics(registry)
        self.engine = EngineMetrics(registry)
        self.streams = StreamMetrics(registry)
        self.jobs = JobMetrics(registry, self.audio)
        self.loop_lag = LoopLag(registry)
        self.refused_callers = Counter(
            "typeless_auth_failures_total", "Calls refused for their key, by reason.", ("reason",), registry=registry
        )
        self.rate_limited = Counter(
            "typeless_rate_limited_total", "Calls refused for their caller's quota.", ("group",), registry=registry
        )
        for group in Group:
            self.rate_limited.labels(group.value)
        self.rate_limit_store_up = self._availability("typeless_rate_limit_store_up", "the Redis of the rate limits")
        self.rate_limit_fallbacks = Counter(
            "typeless_rate_limit_fallbacks_total",
            "Charges made without the shared rate limits, because they were unavailable.",
            registry=registry,
        )
        self.key_store_up = self._availability("typeless_key_store_up", "the key store")
        self.keys_read = Gauge(
            "typeless_key_store_read_timestamp_seconds",
            "Unix time at which keys were last read; keys revoked since then are still accepted here.",
            registry=registry,
        )
        self.token_keys_up = self._availability("typeless_token_keys_up", "the identity provider")

        self.reload_successful = Gauge(
            "typeless_config_reload_successful",
            "0 if the last reload of the settings failed, so that the old ones are still in force; else 1.",
            registry=registry,
        )
        self.reload_successful.set(1)
        self.settings_read = Gauge(
            "typeless_config_reload_timestamp_seconds",
            "Unix time at which the settings in force were read.",
            registry=registry,
        )
        self.settings_read.set_to_current_time()

    def reloaded(self, is_successful: bool) -> None:
        """The settings were reloaded, or could not be."""
        self.reload_successful.set(is_successful)
        if is_successful:
            self.settings_read.set_to_current_time()

    def watch_admission(self, held_s: Callable[[], float], max_s: Callable[[], float]) -> None:
        """Show how much decoded audio calls, streams and jobs hold, and how much they may."""
        add_gauge(
            self.registry, "typeless_held_audio_seconds", "Decoded audio in memory, of all channels together.", held_s
        )
        limit = "How much decoded audio may be in memory: max_held_audio_s."
        add_gauge(self.registry, "typeless_held_audio_limit_seconds", limit, max_s)

    def watch_health(self, statuses: Callable[[], Mapping[str, bool]]) -> None:
        """Show which services report SERVING. statuses: by name; "" is the server as a whole."""
        add_gauges(
            self.registry,
            "typeless_serving",
            "Whether a service reports SERVING; the service without a name is the server as a whole.",
            ("service",),
            lambda: {(name,): float(is_serving) for name, is_serving in statuses().items()},
        )

    def watch_certificate(self, expires_s: Callable[[], float]) -> None:
        """Show when the server's certificate expires, as Unix time."""
        help = "Unix time at which the server's TLS certificate expires; absent without TLS."
        add_gauge(self.registry, "typeless_tls_certificate_expiry_timestamp_seconds", help, expires_s)

    def _availability(self, name: str, what: str) -> Gauge:
        """Return a gauge that is 1 until a service fails to answer; it stays 1 if the service is not used."""
        gauge = Gauge(name, f"0 while {what} is unavailable, else 1.", registry=self.registry)
        gauge.set(1)
        return gauge
