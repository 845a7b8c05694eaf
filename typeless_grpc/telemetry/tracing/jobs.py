"""Spans of jobs, in the trace of the call that submitted them, whichever process runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span, set_span_in_context

from typeless_grpc.jobs.observer import NoJobObserver
from typeless_grpc.jobs.store import Run
from typeless_grpc.telemetry.tracing.current import current, entered, is_sampled, of_headers
from typeless_grpc.telemetry.tracing.setup import Tracing


class JobTracer(NoJobObserver):
    """A `JobObserver`: each run becomes a span "job", beside its wait, "job queue". Its chunks are within it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        """See `JobObserver`."""
        tracer, parent, now_ns = self._tracing.tracer, of_headers(run.trace), time.time_ns()
        submission = get_current_span(parent).get_span_context()
        attributes: dict[str, str | int] = {"typeless.job_id": run.job.job_id, "typeless.attempt": run.job.attempt}
        if is_sampled(get_current_span(parent)):
            started_ns = now_ns - round(run.waited_s * 1e9)
            tracer.start_span("job queue", parent, start_time=started_ns, attributes=attributes).end(now_ns)
        links = [Link(submission)] if submission.is_valid else []
        span = tracer.start_span("job", parent, SpanKind.CONSUMER, attributes, links)
        try:
            with entered(span, parent):
                yield
        finally:
            span.end()

    @contextmanager
    def decoding(self, run: Run, index: int) -> Iterator[None]:
        """See `JobObserver`."""
        parent = set_span_in_context(current(), otel.Context())
        span = self._tracing.tracer.start_span("job chunk", parent, attributes={"typeless.chunk": index})
        try:
            with entered(span, parent):
                yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()

    def run_ended(self, outcome: str) -> None:
        """See `JobObserver`."""
        current().set_attribute("typeless.outcome", outcome)
        if outcome == "failed":
            current().set_status(Status(StatusCode.ERROR))
