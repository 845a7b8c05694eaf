"""Every call ends: by its caller's deadline, or by a limit of ours where it has none or asks for more."""

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
    """Tells the inside when the answer must be there, and cuts what takes too long.

    gRPC itself cancels a call whose caller's deadline passes; here is only what it does not do.
    """

    def __init__(self, rules: Rules, max_call_s: float) -> None:
        """max_call_s: of a call that is not long-lived by nature, as a stream is."""
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
            text = f"The call took longer than the {self._max_call_s:g} s that this server gives one."
            raise DeadlineExceeded(text, reason="CALL_TOO_LONG") from error
        finally:
            deadline_s.reset(token)
