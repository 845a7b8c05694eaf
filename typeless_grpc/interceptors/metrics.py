"""Counts and times every call. It is outside the status interceptor, so that it sees the final status."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from prometheus_client import Counter, Histogram

from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.metrics import Metrics

# By whether requests and responses are streams; the labels of go-grpc-prometheus.
TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
NAMES: dict[Any, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0]) if key != 0}


class MetricsInterceptor(Interceptor):
    """Counts calls at their start and at their end, and measures their time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._types: dict[str, str] = {}
        # Looking a metric up by its labels takes longer than counting.
        self._labelled = functools.cache(self._find)

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        started, seconds, _ = self._labelled(call.method)
        started.inc()
        started_s = time.monotonic()
        code = "UNKNOWN"
        try:
            yield
            code = _name(call.context.code()) or "OK"
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except grpc.aio.BaseError:
            # Ended by `abort`, or its caller cancelled it during a write.
            code = _name(call.context.code()) or "CANCELLED"
            raise
        finally:
            self._labelled(call.method, code)[2].inc()
            seconds.observe(time.monotonic() - started_s)

    def _find(self, method: str, code: str = "OK") -> tuple[Counter, Histogram, Counter]:
        _, service, name = method.split("/")
        labels = (self._types[method], service, name)
        metrics = self._metrics
        return metrics.started.labels(*labels), metrics.seconds.labels(*labels), metrics.handled.labels(*labels, code)

    def serves(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Note whether the method's requests and responses are streams."""
        self._types[method_name] = TYPES[handler.request_streaming, handler.response_streaming]


def _name(code: Any) -> str:
    """Return the name of what `context.code()` returned: a StatusCode, its number, or None if not set yet."""
    return NAMES.get(code, "")
