"""Spans of audio, of the engine, of streams and of text, made when the work has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import Context

from opentelemetry import context as otel
from opentelemetry.trace import Link, Span, set_span_in_context

from typeless_grpc.clock import Clock
from typeless_grpc.engine.observer import BatchReport, NoObserver, Stage, WindowReport
from typeless_grpc.streaming.observer import NoStreamObserver
from typeless_grpc.telemetry.tracing.current import current, is_sampled
from typeless_grpc.telemetry.tracing.setup import Tracing


class EngineTracer(NoObserver):
    """An `EngineObserver`. Each window becomes a span "queue" and a span "inference" with its stages.

    A batch becomes a trace of its own. It links to the call of each of its windows, and each window links to it.
    """

    def __init__(self, tracing: Tracing, clock: Clock) -> None:
        """clock: of the engine."""
        self._tracing, self._clock = tracing, clock

    def batch_ended(self, batch: BatchReport) -> None:
        """See `EngineObserver`."""
        spans = [(window, current(window.context)) for window in batch.windows]
        sampled = [(window, span) for window, span in spans if is_sampled(span)]
        if not sampled:
            return
        origin_ns = time.time_ns() - round(self._clock.now_s() * 1e9)

        def ns(clock_s: float) -> int:
            return origin_ns + round(clock_s * 1e9)

        calls = {context.span_id: context for context in (span.get_span_context() for _, span in sampled)}
        shared = self._tracing.batches.start_span(
            "batch",
            otel.Context(),
            start_time=ns(batch.started_s),
            links=[Link(context) for context in calls.values()],
            attributes={"typeless.windows": len(batch.windows)}
            | {f"typeless.{stage.name}_s": round(stage.seconds, 6) for stage in batch.stages},
        )
        shared.end(ns(batch.ended_s))
        link = Link(shared.get_span_context())
        for window, span in sampled:
            self._window(window, span, batch, link, ns=ns)

    def _window(
        self, window: WindowReport, span: Span, batch: BatchReport, link: Link, *, ns: Callable[[float], int]
    ) -> None:
        """Record how long a window waited, and the batch that it ran in."""
        tracer, parent = self._tracing.tracer, set_span_in_context(span, otel.Context())
        attributes = {"typeless.lane": window.lane.name.lower()}
        waiting = tracer.start_span("queue", parent, start_time=ns(window.submitted_s), attributes=attributes)
        waiting.end(ns(batch.started_s))
        inference = tracer.start_span(
            "inference",
            parent,
            start_time=ns(batch.started_s),
            links=[link],
            attributes=attributes | {"typeless.windows": len(batch.windows), "typeless.wanted": window.is_done},
        )
        for stage in batch.stages:
            self._stage(stage, set_span_in_context(inference, otel.Context()), ns=ns)
        inference.end(ns(batch.ended_s))

    def _stage(self, stage: Stage, parent: otel.Context, *, ns: Callable[[float], int]) -> None:
        span = self._tracing.tracer.start_span(stage.name, parent, start_time=ns(stage.started_s))
        span.end(ns(stage.started_s + stage.seconds))


class StreamTracer(NoStreamObserver):
    """A `StreamObserver`: each final becomes a span from the end of its speech to its release."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        """See `StreamObserver`."""
        _ended(self._tracing, "final", latency_s or 0.0, current(context), mode=mode)


class AudioTracer:
    """An `AudioObserver`."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def audio_decoded(self, seconds: float) -> None:
        """See `AudioObserver`."""
        _ended(self._tracing, "audio", seconds, current())


class TextTracer:
    """A `TextObserver`."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def text_finished(self, seconds: float) -> None:
        """See `TextObserver`."""
        _ended(self._tracing, "text", seconds, current())


def _ended(tracing: Tracing, name: str, seconds: float, parent: Span, **attributes: str) -> None:
    """Make a span that ends now."""
    if not is_sampled(parent):
        return
    now_ns = time.time_ns()
    span = tracing.tracer.start_span(
        name,
        set_span_in_context(parent, otel.Context()),
        start_time=now_ns - round(seconds * 1e9),
        attributes={f"typeless.{key}": value for key, value in attributes.items()},
    )
    span.end(now_ns)
