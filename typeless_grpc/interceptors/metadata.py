"""Bounds the number of a call's headers. gRPC bounds their size, see `server.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.errors import TooLarge
from typeless_grpc.interceptors.seam import Call, Interceptor


class MetadataInterceptor(Interceptor):
    """Refuses a call with too many headers before any other interceptor reads them."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries

    def use(self, max_entries: int) -> None:
        """Apply this bound from the next call on."""
        self._max_entries = max_entries

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        n_entries = len(call.headers)
        if n_entries > self._max_entries:
            raise TooLarge(
                f"The call has {n_entries} headers; at most {self._max_entries} are accepted.",
                reason="TOO_MANY_HEADERS",
            )
        yield
