"""Counts and times every call; outside of the status, so that it sees how a call ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.metrics import Metrics


class MetricsInterceptor(Interceptor):
    """One count as a call begins, one as it ends, and its time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._types: dict[str, str] = {}

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        _, service, method = call.method.split("/")
        labels = (self._types[call.method], service, method)
        self._metrics.started.labels(*labels).inc()
        started_s = time.monotonic()
        code = "UNKNOWN"
        try:
            yield
            code = _name(call.context.code()) or "OK"
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except grpc.aio.BaseError:
            # Ended by `abort`, or written to after its caller had gone.
            code = _name(call.context.code()) or "CANCELLED"
            raise
        finally:
            self._metrics.handled.labels(*labels, code).inc()
            self._metrics.seconds.labels(*labels).observe(time.monotonic() - started_s)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Note the shape of the call on the way."""
        handler = await super().intercept_service(continuation, handler_call_details)
        if handler is not None:
            asks = "client_stream" if handler.request_streaming else "unary"
            shape = {(False, False): "unary", (True, True): "bidi_stream", (False, True): "server_stream"}
            self._types[handler_call_details.method] = shape.get(
                (handler.request_streaming, handler.response_streaming), asks
            )
        return handler


def _name(code: Any) -> str:
    """`context.code()` is a StatusCode, its number, or nothing yet."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code and code), "")
