"""Metrics, and the port on which Prometheus reads them.

The `grpc_server_*` names are those of go-grpc-prometheus, which existing dashboards use. Labels come from the contract
and from our own tables, never from callers, so that callers cannot create metrics without bound.
"""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from typeless_grpc.access.listening import why_unusable
from typeless_grpc.errors import SourceUnavailable

METHOD = ("grpc_type", "grpc_service", "grpc_method")
# Seconds, from calls of a few milliseconds to recordings of an hour.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.started = Counter("grpc_server_started_total", "Calls begun.", METHOD, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "Calls ended, by status.", (*METHOD, "grpc_code"), registry=registry
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds", "How long calls took.", METHOD, buckets=BUCKETS_S, registry=registry
        )
        self.refused_callers = Counter(
            "typeless_auth_failures_total", "Calls refused for their key, by reason.", ("reason",), registry=registry
        )
        self.rate_limited = Counter(
            "typeless_rate_limited_total", "Calls refused for their caller's quota.", ("group",), registry=registry
        )
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

    def _availability(self, name: str, what: str) -> Gauge:
        """Return a gauge that is 1 until a service fails to answer; it stays 1 if the service is not used."""
        gauge = Gauge(name, f"0 while {what} is unavailable, else 1.", registry=self.registry)
        gauge.set(1)
        return gauge


class MetricsPort:
    """An HTTP port that answers `GET /metrics`."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._server.server_port)

    @classmethod
    def open(cls, metrics: Metrics, host: str, port: int) -> MetricsPort:
        """Listen; port 0 takes a free one. Raises SourceUnavailable if the address cannot be used."""
        try:
            return cls(*start_http_server(port, host, metrics.registry))
        except (OSError, UnicodeError) as error:
            if why := why_unusable(host, port):
                where = f"Cannot serve metrics on {host}:{port}"
                raise SourceUnavailable(f"{where}: {why}.", reason="ADDRESS_UNUSABLE") from error
            raise SourceUnavailable(
                f"Cannot serve metrics on {host}:{port}: choose another port with TYPELESS_METRICS_PORT.",
                reason="ADDRESS_IN_USE",
            ) from error

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
