"""The one place where interceptors meet grpc.aio: gives calls of all four kinds the same form.

Responses are sent with `context.write`, and the handler is always a coroutine. grpc.aio leaves an async generator to
the garbage collector when a client cancels under back-pressure, so its cleanup would run late and in another context.

Requests are always an iterator. grpc.aio would read the request of a unary call before it calls any interceptor, so
that callers without a key or a quota could make the server buffer megabytes. Here, the request is read after all
interceptors, and a refused call costs only its headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.errors import NotImplementedHere
from typeless_grpc.telemetry.context import HALF_CLOSE_GRACE_S

# A refusal is sent when the caller has paused for PAUSE_S, at the latest after READ_ON_S.
PAUSE_S = 0.05
READ_ON_S = 2.0


class Requests:
    """Iterates over the requests of a streaming call.

    gRPC cannot cancel a read, so a read survives the cancellation of its reader, and the next reader gets its result.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._reading: asyncio.Future[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
        try:
            request = await asyncio.shield(self._reading)
        except Exception:
            self._reading = None
            raise
        self._reading = None
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request

    async def read_on(self) -> None:
        """Read and discard requests until the caller pauses or ends, two seconds at most.

        Clients built on grpc.aio lose a status that arrives during a write: they report the failed write instead, as
        INTERNAL without details.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + READ_ON_S
        with contextlib.suppress(Exception):  # the call is refused already
            while loop.time() < end_s:
                async with asyncio.timeout(PAUSE_S):
                    await anext(self)

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
            self._reading.cancel()


@dataclass(frozen=True)
class Call:
    """An incoming call. method: "/package.Service/Method". requests: None if its requests are not a stream."""

    method: str
    context: grpc.aio.ServicerContext[Any, Any]
    requests: Requests | None = None

    @functools.cached_property
    def headers(self) -> tuple[tuple[str, str | bytes], ...]:
        """All metadata, read once, because grpc builds it anew at each access."""
        return tuple(self.context.invocation_metadata() or ())

    def metadata(self, key: str) -> str | None:
        """Return the first value of a metadata key (lower case), None if there is none."""
        return next(iter(self.all_metadata(key)), None)

    def all_metadata(self, key: str) -> list[str]:
        """Return all values of a metadata key in their order."""
        return [
            value if isinstance(value, str) else value.decode("ascii", "replace")
            for name, value in self.headers
            if name == key
        ]

    def add_trailers(self, *trailers: tuple[str, str]) -> None:
        """Add trailers to those that are sent when the call ends."""
        self.context.set_trailing_metadata((*(self.context.trailing_metadata() or ()), *trailers))


# Takes the requests (one for a unary call) and the call.
Handler = Callable[[AsyncIterator[Any], Call], Awaitable[Any]]


class Interceptor(grpc.aio.ServerInterceptor):
    """One concern of every call. Subclasses override `around`, or `run` if they change the requests."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Return a context that is entered before the handler runs and left when it ends or raises."""
        return nullcontext()

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """Run the handler, which includes the inner interceptors, within `around`."""
        async with self.around(call):
            return await handler(requests, call)

    def deserializer(self, inner: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Return a method's deserializer of requests: `inner`, unless this interceptor checks the encoded bytes."""
        return inner

    def note_method(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Take note of a method and its handler. Called once for each method, before its first call is handled."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler with this interceptor around it; None if the method is not implemented."""
        return await Chain([self]).intercept_service(continuation, handler_call_details)


class Chain(grpc.aio.ServerInterceptor):
    """Combines interceptors into one; the first is the outermost.

    A chain wraps each method's handler once and reads a call's headers once, instead of at every interceptor.
    """

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler with all interceptors around it; None if the method is not implemented."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method_name = handler_call_details.method
        known, wrapped = self._wrapped.get(method_name, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method_name)
            self._wrapped[method_name] = (handler, wrapped)
        return wrapped

    def _wrap(self, handler: Any, method_name: str) -> Any:
        """Return a handler that runs the interceptors, the first one outermost, around the given one."""
        method, factory = _shape(handler)
        inside = _handled(method, is_unary=not handler.request_streaming)
        deserializer = handler.request_deserializer
        for interceptor in reversed(self._interceptors):
            interceptor.note_method(method_name, handler)
            deserializer = interceptor.deserializer(deserializer)
            inside = functools.partial(interceptor.run, inside)

        async def single(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await inside(requests, Call(method_name, context))

        async def streaming(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with contextlib.closing(Requests(context)) as requests:
                return await inside(requests, Call(method_name, context, requests))

        invoke = streaming if handler.request_streaming else single

        return factory(invoke, deserializer, handler.response_serializer)


def _handled(method: Callable[[Any, Any], Any], *, is_unary: bool) -> Handler:
    """Adapt a handler of any kind: it returns its single response, or writes all responses and returns None.

    is_unary: the method takes one request instead of an iterator.
    """

    async def handle(requests: AsyncIterator[Any], call: Call) -> Any:
        answer = method(await _single(requests, call) if is_unary else requests, call.context)
        if inspect.isasyncgen(answer):
            async with aclosing(answer) as messages:
                async for message in messages:
                    await call.context.write(message)
            return None
        return await answer

    return handle


async def _single(requests: AsyncIterator[Any], call: Call) -> Any:
    async for request in requests:
        return request
    # Raises CancelledError if the iterator ended because the caller cancelled.
    await asyncio.sleep(HALF_CLOSE_GRACE_S)
    # UNIMPLEMENTED is the code that gRPC uses for a wrong number of requests.
    raise NotImplementedHere(f"{call.method} takes one request, but none arrived.", reason="REQUEST_MISSING")


def _shape(handler: Any) -> tuple[Callable[[Any, Any], Any], Callable[..., Any]]:
    """Return a handler's method, and the factory of a handler that takes an iterator and responds in the same way."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return handler.unary_unary, grpc.stream_unary_rpc_method_handler
        case False, True:
            return handler.unary_stream, grpc.stream_stream_rpc_method_handler
        case True, False:
            return handler.stream_unary, grpc.stream_unary_rpc_method_handler
        case _:
            return handler.stream_stream, grpc.stream_stream_rpc_method_handler
