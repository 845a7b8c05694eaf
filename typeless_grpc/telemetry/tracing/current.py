"""The current span of code that works for a call, also in its threads and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context as Variables
from contextvars import ContextVar

from opentelemetry import context as otel
from opentelemetry.trace import INVALID_SPAN, Span, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from typeless_grpc.telemetry.context import trace_headers, trace_id

_W3C = TraceContextTextMapPropagator()
_span: ContextVar[Span] = ContextVar("span", default=INVALID_SPAN)


@contextmanager
def entered(span: Span, parent: otel.Context | None = None) -> Iterator[None]:
    """Make a span the current one while the block runs; the caller ends it. parent: with values to keep, as baggage."""
    context = set_span_in_context(span, parent)
    headers: dict[str, str] = {}
    _W3C.inject(headers, context)
    tokens = (
        _span.set(span),
        trace_id.set(format_trace_id(span.get_span_context().trace_id)),
        trace_headers.set(headers),
    )
    attached = otel.attach(context)  # for instrumentation of libraries
    try:
        yield
    finally:
        otel.detach(attached)
        _span.reset(tokens[0])
        trace_id.reset(tokens[1])
        trace_headers.reset(tokens[2])


def current(variables: Variables | None = None) -> Span:
    """Return the current span; variables: that in this context."""
    return _span.get() if variables is None else variables.get(_span, INVALID_SPAN)


def is_sampled(span: Span) -> bool:
    """Whether a span is exported."""
    return span.get_span_context().trace_flags.sampled


def of_headers(headers: Mapping[str, str]) -> otel.Context:
    """Return the context of W3C headers, an empty one if they are missing or malformed."""
    return _W3C.extract(headers, otel.Context())
