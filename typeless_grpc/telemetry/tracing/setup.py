"""The tracer: its exporters, its sampler and its resource, from the standard variables of OpenTelemetry.

The SDK reads most of them itself: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_PROPAGATORS, OTEL_BSP_* and OTEL_EXPORTER_OTLP_*.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from typeless_grpc.errors import InvalidInput
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.version import VERSION

log = get_logger(__name__)

SERVICE = "typeless-grpc"
FLUSH_S = 5.0  # longest wait at the end, for spans that are not exported yet
PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class Tracing:
    """Creates and exports spans.

    The exporter has a thread and a bounded queue: spans beyond it are dropped. tracer: samples as the variables
    request. batches: the tracer of spans that must be exported if any span that they link to is.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises InvalidInput if a variable names an exporter that is not installed."""
        resource = Resource.create({SERVICE_VERSION: VERSION})
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        self._processors = [BatchSpanProcessor(exporter) for exporter in _exporters(environ)]
        self.tracer = self._tracer(TracerProvider(resource=resource, shutdown_on_exit=False))
        self.batches = self._tracer(TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False))

    def _tracer(self, provider: TracerProvider) -> Tracer:
        for processor in self._processors:
            provider.add_span_processor(processor)
        return provider.get_tracer(SERVICE, VERSION)

    def close(self) -> None:
        """Export what is left, within `FLUSH_S`. Blocks."""
        threads = [
            threading.Thread(target=_shut_down, args=(processor,), name="export", daemon=True)
            for processor in self._processors
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(FLUSH_S / len(threads))
        if any(thread.is_alive() for thread in threads):
            log.warning("the last spans were not exported in time", seconds=FLUSH_S)


def _shut_down(processor: SpanProcessor) -> None:
    try:
        processor.force_flush(int(FLUSH_S * 1000))
        processor.shutdown()
    except Exception:
        log.exception("the last spans were not exported")


def _exporters(environ: Mapping[str, str]) -> Iterator[SpanExporter]:
    names = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    for name in (one.strip() for one in names.split(",")):
        if name and name != "none":
            make = _exporter(_protocol(environ) if name == "otlp" else name)
            try:
                yield make()
            except ValueError as error:  # of one of its own variables
                why = f"the exporter '{name}' cannot be made: {error}"
                raise InvalidInput("OTEL_TRACES_EXPORTER", why, reason="CONFIG_INVALID") from error


def _protocol(environ: Mapping[str, str]) -> str:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((name for name in variables if environ.get(name)), variables[-1])
    protocol = environ.get(variable) or "grpc"
    if protocol not in PROTOCOLS:
        raise InvalidInput(variable, f"must be one of {', '.join(PROTOCOLS)}", reason="CONFIG_INVALID")
    return PROTOCOLS[protocol]


def _exporter(name: str) -> Any:
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        why = f"there is no exporter '{name}' of traces on this machine"
        raise InvalidInput("OTEL_TRACES_EXPORTER", why, reason="CONFIG_INVALID")
    return found.load()
