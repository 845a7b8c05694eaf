"""Opens an account for every call, and reports the call to observers: metrics, the log, usage.

It is outside the status interceptor, so that it sees the final status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from typeless_grpc import account
from typeless_grpc.account import CallAccount
from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.calls import CallObserver, CallRecord, Method
from typeless_grpc.telemetry.context import request_id

# The labels of go-grpc-prometheus, by whether requests and responses are streams.
TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
NAMES: dict[Any, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0]) if key != 0}


class AccountingInterceptor(Interceptor):
    """Reports calls at their start and at their end."""

    def __init__(self, observers: Sequence[CallObserver], *, keeps_text: bool = False) -> None:
        """keeps_text: accounts keep the text of transcripts, for the log."""
        self._observers = tuple(observers)
        self._keeps_text = keeps_text
        self._methods: dict[str, Method] = {}

    def use(self, *, keeps_text: bool) -> None:
        """Keep texts, or do not, from the next call on."""
        self._keeps_text = keeps_text

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        method = self._methods[call.method]
        started_s = time.monotonic()
        code = "UNKNOWN"
        with account.opened(CallAccount(keeps_text=self._keeps_text)) as current:
            for observer in self._observers:
                observer.call_started(method, current)
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
                record = CallRecord(method, code, time.monotonic() - started_s, current, request_id.get())
                for observer in self._observers:
                    observer.call_ended(record)

    def note_method(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Note whether the method's requests and responses are streams."""
        _, service, name = method_name.split("/")
        self._methods[method_name] = Method(service, name, TYPES[handler.request_streaming, handler.response_streaming])


def _name(code: Any) -> str:
    """Return the name of what `context.code()` returned: a StatusCode, its number, or None if not set yet."""
    return NAMES.get(code, "")
