"""A collector of traces for tests: OTLP over gRPC, as OpenTelemetry Collector speaks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Exported:
    """A span that was exported. Times are Unix nanoseconds, ids hexadecimal; links are (trace, span)."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    resource: dict[str, Any]

    @property
    def id(self) -> tuple[str, str]:
        """What links name."""
        return self.trace_id, self.span_id


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans in the order in which they came."""

    def __init__(self) -> None:
        self._spans: list[Exported] = []
        self._changed = Condition()
        self.target = ""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = [
            _exported(span, _values(group.resource.attributes))
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self._spans += found
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Exported]:
        with self._changed:
            return list(self._spans)

    def until(self, holds: Callable[[list[Exported]], Any], timeout_s: float = 30.0) -> list[Exported]:
        """Wait until this holds of the spans so far, and return them."""
        ends_s = time.monotonic() + timeout_s
        with self._changed:
            while not holds(self._spans):
                left_s = ends_s - time.monotonic()
                assert left_s > 0, f"only these came: {[(span.name, span.attributes) for span in self._spans]}"
                self._changed.wait(left_s)
            return list(self._spans)

    def trace(self, trace_id: str, *names: str) -> list[Exported]:
        """Wait until a trace has spans of these names, and return all its spans in the order of their starts."""
        spans = self.until(lambda all: set(names) <= {span.name for span in all if span.trace_id == trace_id})
        return sorted((span for span in spans if span.trace_id == trace_id), key=lambda span: span.start_ns)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.target = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _exported(span: Any, resource: dict[str, Any]) -> Exported:
    return Exported(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        is_error=span.status.code == 2,
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
