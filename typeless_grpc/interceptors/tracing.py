"""Runs every call in a span: in its caller's trace, or in a new one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

from typeless_grpc.interceptors.seam import Call, Interceptor

# Probes, and calls that tools make by themselves.
IGNORED = "/grpc."


class Tracer(Protocol):
    """Makes spans of calls; `telemetry/tracing/calls.py` is the real one."""

    def around(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return the context of a call. headers: with the caller's trace, if it has one."""
        ...


class TracingInterceptor(Interceptor):
    """Runs each call in a span; outside of the accounting, whose report completes the span."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.method.startswith(IGNORED):
            yield
            return
        headers: dict[str, str] = {}
        for name, value in call.headers:
            if isinstance(value, str):
                headers.setdefault(name, value)
        with self._tracer.around(call.method, headers):
            yield
