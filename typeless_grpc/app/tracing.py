"""Turns traces on if the standard variables of OpenTelemetry request them. Otherwise its libraries are not imported."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typeless_grpc.clock import SystemClock
from typeless_grpc.errors import InvalidInput

if TYPE_CHECKING:
    from typeless_grpc.audio.observer import AudioObserver
    from typeless_grpc.engine.observer import EngineObserver
    from typeless_grpc.interceptors.seam import Interceptor
    from typeless_grpc.jobs.observer import JobObserver
    from typeless_grpc.streaming.observer import StreamObserver
    from typeless_grpc.telemetry.calls import CallObserver
    from typeless_grpc.text.observer import TextObserver

VARIABLES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True)
class Tracers:
    """The parts that create spans of each kind of work; empty if traces are off.

    interceptors: create the spans of calls, which the observers in `calls` complete.
    """

    engine: Sequence[EngineObserver] = ()
    streams: Sequence[StreamObserver] = ()
    jobs: Sequence[JobObserver] = ()
    audio: AudioObserver | None = None
    text: TextObserver | None = None
    calls: Sequence[CallObserver] = ()
    interceptors: Sequence[Interceptor] = ()


NO_TRACERS = Tracers()


@asynccontextmanager
async def open_tracing(environ: Mapping[str, str] = os.environ) -> AsyncIterator[Tracers]:
    """Create and export spans until the block ends, if the variables request it.

    Raises InvalidInput if the extra is not installed, or if a variable cannot be used.
    """
    variable = requested_by(environ)
    if variable is None:
        yield NO_TRACERS
        return
    from typeless_grpc.interceptors.tracing import TracingInterceptor

    try:
        from typeless_grpc.telemetry.tracing.calls import CallTracer
        from typeless_grpc.telemetry.tracing.jobs import JobTracer
        from typeless_grpc.telemetry.tracing.setup import Tracing
        from typeless_grpc.telemetry.tracing.work import AudioTracer, EngineTracer, StreamTracer, TextTracer
    except ModuleNotFoundError as error:
        why = f"is set, but traces need an extra ({error.name} is missing): pip install 'typeless-grpc[otel]'"
        raise InvalidInput(variable, why, reason="CONFIG_INVALID") from error
    except ValueError as error:  # while it is imported, `propagate` reads this variable
        raise InvalidInput("OTEL_PROPAGATORS", str(error), reason="CONFIG_INVALID") from error
    tracing = Tracing(environ)
    calls = CallTracer(tracing)
    try:
        yield Tracers(
            engine=[EngineTracer(tracing, SystemClock())],
            streams=[StreamTracer(tracing)],
            jobs=[JobTracer(tracing)],
            audio=AudioTracer(tracing),
            text=TextTracer(tracing),
            calls=[calls],
            interceptors=[TracingInterceptor(calls)],
        )
    finally:
        await asyncio.to_thread(tracing.close)


def requested_by(environ: Mapping[str, str]) -> str | None:
    """Return the variable that turns traces on, None if they are off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    return next((name for name in VARIABLES if environ.get(name, "").strip()), None)
