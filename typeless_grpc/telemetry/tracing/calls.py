"""Spans of calls, by the semantic conventions of OpenTelemetry for RPC.

The interceptor of opentelemetry-instrumentation-grpc does not fit our chain: it iterates over a handler's responses,
but ours writes them. Inside the chain it would see neither refusals nor final codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from google.rpc import code_pb2
from opentelemetry import context as otel
from opentelemetry import propagate
from opentelemetry.trace import SpanKind, Status, StatusCode

from typeless_grpc.account import CallAccount
from typeless_grpc.telemetry.calls import CallRecord, Method
from typeless_grpc.telemetry.context import request_id
from typeless_grpc.telemetry.tracing.current import current, entered
from typeless_grpc.telemetry.tracing.setup import Tracing

# Codes that are faults of the server, by the conventions; the others are faults of the request.
ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class CallTracer:
    """Makes a span for each call, and is the `CallObserver` that completes it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    @contextmanager
    def around(self, method: str, headers: Mapping[str, str]) -> Iterator[None]:
        """Make the span of a call, within the caller's trace if its headers name one. method: "/Service/Method"."""
        parent = propagate.extract(headers, otel.Context())
        service, _, name = method.lstrip("/").partition("/")
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "typeless.request_id": request_id.get(),
        }
        span = self._tracing.tracer.start_span(f"{service}/{name}", parent, SpanKind.SERVER, attributes)
        try:
            with entered(span, parent):
                yield
        finally:
            span.end()

    def call_started(self, method: Method, account: CallAccount) -> None:
        """See `CallObserver`."""

    def call_ended(self, record: CallRecord) -> None:
        """See `CallObserver`."""
        span, account = current(), record.account
        if not span.is_recording():
            return
        span.set_attribute("rpc.grpc.status_code", code_pb2.Code.Value(record.code))
        if record.code != "OK":
            span.set_attribute("error.type", account.reason or record.code)
        if record.code in ERRORS:
            span.set_status(Status(StatusCode.ERROR, account.reason or record.code))
        values: dict[str, str | float] = {
            "typeless.caller": account.caller,
            "typeless.audio_s": round(account.audio_s, 3),
            "typeless.queue_s": round(account.queue_s, 4),
            "typeless.processing_s": round(account.processing_s, 4),
        }
        span.set_attributes({name: value for name, value in values.items() if value})
