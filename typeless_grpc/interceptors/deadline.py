"""Ends every call: at its caller's deadline, or at the server's limit if that is earlier."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.access.methods import Rules
from typeless_grpc.errors import DeadlineExceeded
from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.context import deadline_s


class DeadlineInterceptor(Interceptor):
    """Sets the call's deadline for the code inside, and ends calls that exceed the server's limit.

    gRPC itself cancels a call at its caller's deadline.
    """

    def __init__(self, rules: Rules, max_call_s: float) -> None:
        """max_call_s: limit for calls that are not long-lived, as streams are."""
        self._rules = rules
        self._max_call_s = max_call_s

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        left_s = call.context.time_remaining()
        ours_s = None if self._rules[call.method].is_long_lived else self._max_call_s
        limits_s = [limit for limit in (left_s, ours_s) if limit is not None]
        token = deadline_s.set(time.monotonic() + min(limits_s) if limits_s else None)
        try:
            async with asyncio.timeout(ours_s) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            text = f"The call took longer than {self._max_call_s:g} s, the most this server allows."
            raise DeadlineExceeded(text, reason="CALL_TOO_LONG") from error
        finally:
            deadline_s.reset(token)
