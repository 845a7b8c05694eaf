"""Bounds requests of unary calls that arrive slowly: their number, and the time that each may take.

gRPC buffers an incomplete message without reporting its size, so each counts as the largest possible one. A request
that is complete within a second needs no slot and never waits: slow requests cannot block fast ones. Messages of
streams are bounded by the idle timeout and by the number of streams.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.access import principal
from typeless_grpc.errors import DeadlineExceeded, Overloaded, RateLimited, TypelessError
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor

SLOW_S = 1.0  # a request that is complete by then is not slow
MAX_PERCENT = 25  # of the slots for slow requests, for one caller


@dataclass(frozen=True)
class ArrivalOptions:
    """timeout_s: for a request to be complete. max_slow: requests that may take longer than slow_s."""

    timeout_s: float
    max_slow: int
    slow_s: float = SLOW_S

    @property
    def max_slow_of_caller(self) -> int:
        """How many slow requests one caller may have."""
        return max(1, self.max_slow * MAX_PERCENT // 100)


class ArrivalInterceptor(Interceptor):
    """Ends a unary call whose request does not arrive in time, or is slow while no slot is free."""

    def __init__(self, options: ArrivalOptions) -> None:
        self._options = options
        self._unary: set[str] = set()
        self._n_slow: Counter[str] = Counter()  # by caller

    def use(self, options: ArrivalOptions) -> None:
        """Apply these options to requests that arrive from now on."""
        self._options = options

    def note_method(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Note which methods are unary."""
        if not handler.request_streaming:
            self._unary.add(method_name)

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """Bound the time in which the request of a unary call arrives."""
        return await handler(self._in_time(requests) if call.method in self._unary else requests, call)

    async def _in_time(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the request. Raises RateLimited or Overloaded if it is slow and gets no slot, or DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        caller_id = principal.current().id
        refusal: TypelessError | None = None
        has_slot = False

        def take_slot() -> None:  # the request is slow
            nonlocal refusal, has_slot
            refusal = self._refusal(caller_id)
            if refusal is not None:
                limit.reschedule(loop.time())
                return
            has_slot = True
            self._n_slow[caller_id] += 1

        try:
            async with asyncio.timeout(self._options.timeout_s) as limit:
                timer = loop.call_later(self._options.slow_s, take_slot)
                try:
                    request = await anext(requests, None)
                finally:
                    timer.cancel()
                    if has_slot:
                        self._n_slow -= Counter([caller_id])
        except TimeoutError:
            raise refusal or DeadlineExceeded(
                f"The request was not complete after {self._options.timeout_s:g} s. Over a slow connection, send the "
                "audio with UploadService or StreamTranscribe.",
                reason="REQUEST_UNFINISHED",
            ) from None
        if request is not None:
            yield request

    def _refusal(self, caller_id: str) -> TypelessError | None:
        """Return the error for one more slow request of this caller, None if it is accepted."""
        if self._n_slow[caller_id] >= self._options.max_slow_of_caller:
            text = f"{self._options.max_slow_of_caller} requests of this caller are already arriving slowly."
            return RateLimited(text, reason="TOO_MANY_UNFINISHED", retry_after_s=1.0, subject=caller_id)
        if self._n_slow.total() >= self._options.max_slow:
            return Overloaded(f"{self._options.max_slow} requests are arriving slowly, the most this server accepts.")
        return None
