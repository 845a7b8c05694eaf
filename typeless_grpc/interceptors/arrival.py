"""Bounds what is held of single requests that arrive slowly: how many there are, and the time that each may take.

gRPC keeps what has come of a message until it is whole, and does not say how much that is; so each counts as the
largest there can be. A request that is whole within a second needs no place, and waits for nobody: however many slow
ones there are, short calls go on. Messages of a stream are bounded by its idle time and by how many streams there are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.access import principal as caller
from typeless_grpc.errors import DeadlineExceeded, Overloaded, RateLimited, TypelessError
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor

SOON_S = 1.0  # a request that is whole by then is not slow
MAX_PERCENT = 25  # of the places for slow requests, for one caller


@dataclass(frozen=True)
class ArrivalOptions:
    """timeout_s: for a request to be whole. max_slow: requests that may be on their way for longer than soon_s."""

    timeout_s: float
    max_slow: int
    soon_s: float = SOON_S

    @property
    def max_slow_of_caller(self) -> int:
        """How many of them may be one caller's."""
        return max(1, self.max_slow * MAX_PERCENT // 100)


class ArrivalInterceptor(Interceptor):
    """Ends a call whose single request does not arrive in time, or is slow while too many others are."""

    def __init__(self, options: ArrivalOptions) -> None:
        self._options = options
        self._unary: set[str] = set()
        self._n_slow: Counter[str] = Counter()  # by caller

    def serves(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Note which methods take a single request."""
        if not handler.request_streaming:
            self._unary.add(method_name)

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """Watch the request of a unary call as it is read."""
        return await handler(self._in_time(requests) if call.method in self._unary else requests, call)

    async def _in_time(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        caller_id = caller.current().id
        refusal: TypelessError | None = None
        has_place = False

        def is_slow() -> None:
            nonlocal refusal, has_place
            refusal = self._refusal(caller_id)
            if refusal is not None:
                limit.reschedule(loop.time())
                return
            has_place = True
            self._n_slow[caller_id] += 1

        try:
            async with asyncio.timeout(self._options.timeout_s) as limit:
                soon = loop.call_later(self._options.soon_s, is_slow)
                try:
                    request = await anext(requests, None)
                finally:
                    soon.cancel()
                    if has_place:
                        self._n_slow -= Counter([caller_id])
        except TimeoutError:
            raise refusal or DeadlineExceeded(
                f"The request was not here in whole after {self._options.timeout_s:g} s. On a slow line send the audio "
                "with UploadService or StreamTranscribe.",
                reason="REQUEST_UNFINISHED",
            ) from None
        if request is not None:
            yield request

    def _refusal(self, caller_id: str) -> TypelessError | None:
        """Why one more slow request of this caller cannot be held."""
        if self._n_slow[caller_id] >= self._options.max_slow_of_caller:
            text = f"{self._options.max_slow_of_caller} requests of this caller are on their way already."
            return RateLimited(text, reason="TOO_MANY_UNFINISHED", retry_after_s=1.0, subject=caller_id)
        if self._n_slow.total() >= self._options.max_slow:
            return Overloaded(f"{self._options.max_slow} requests are on their way, the most this server holds.")
        return None
