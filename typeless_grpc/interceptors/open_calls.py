"""Bounds the open calls of all callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.errors import Overloaded
from typeless_grpc.interceptors.seam import Call, Interceptor

HEALTH_CHECKS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"})


class OpenCallsInterceptor(Interceptor):
    """Refuses calls beyond a number. Health checks are exempt, because a busy server is not a dead one."""

    def __init__(self, max_open_calls: int) -> None:
        self._max_open_calls = max_open_calls
        self._n_open = 0

    def use(self, max_open_calls: int) -> None:
        """Apply this bound from the next call on."""
        self._max_open_calls = max_open_calls

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if self._n_open >= self._max_open_calls and call.method not in HEALTH_CHECKS:
            raise Overloaded(f"{self._max_open_calls} calls are open, the most this server accepts.")
        self._n_open += 1
        try:
            yield
        finally:
            self._n_open -= 1
