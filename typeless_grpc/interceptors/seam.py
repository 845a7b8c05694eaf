"""The one place where interceptors meet grpc.aio: the same few lines around a call of any of the four shapes.

Responses leave through `context.write`, and the shape is always a coroutine: grpc.aio leaves an async generator to the
garbage collector when a client cancels under back-pressure, and what the handler must clean up is then cleaned up late
and in another context.

Requests always come as an iterator. grpc.aio would read the single request of a unary call before it asks anyone, so
that a caller without a key or a quota could have its megabytes kept; read here, after all interceptors, a call that is
refused has cost its headers.
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

# A refusal waits for a pause of its caller's so long, and so long at most.
PAUSE_S = 0.05
READ_ON_S = 2.0


class Requests:
    """The requests of a streaming call, as an iterator.

    A read outlives who waits for it, since gRPC cannot take one back: the next to read gets what it brings.
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
        """Read, and drop, until the caller pauses or ends, two seconds at most.

        A refusal that meets a client in the middle of a write is lost on those built on grpc.aio: they take the failed
        write for an error of their own, INTERNAL and without details.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + READ_ON_S
        with contextlib.suppress(Exception):  # what else is wrong with the call is no news
            while loop.time() < end_s:
                async with asyncio.timeout(PAUSE_S):
                    await anext(self)

    def close(self) -> None:
        """Nobody reads any more."""
        if self._reading is not None:
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
            self._reading.cancel()


@dataclass(frozen=True)
class Call:
    """A call on its way in. method: "/package.Service/Method". requests: None where it takes a single one."""

    method: str
    context: grpc.aio.ServicerContext[Any, Any]
    requests: Requests | None = None

    @functools.cached_property
    def headers(self) -> tuple[tuple[str, str | bytes], ...]:
        """All metadata; grpc makes it anew each time it is asked."""
        return tuple(self.context.invocation_metadata() or ())

    def metadata(self, key: str) -> str | None:
        """The first value of a metadata key (lower case), None where the caller sent none."""
        return next(iter(self.all_metadata(key)), None)

    def all_metadata(self, key: str) -> list[str]:
        """Every value of a metadata key, in the order they came."""
        return [
            value if isinstance(value, str) else value.decode("ascii", "replace")
            for name, value in self.headers
            if name == key
        ]

    def add_trailers(self, *trailers: tuple[str, str]) -> None:
        """Send these too when the call ends."""
        self.context.set_trailing_metadata((*(self.context.trailing_metadata() or ()), *trailers))


# Takes an iterator of requests, one where the call is unary, and the call.
Handler = Callable[[AsyncIterator[Any], Call], Awaitable[Any]]


class Interceptor(grpc.aio.ServerInterceptor):
    """One concern around every call: what `around` does before its `yield`, after it, and with what is raised there."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Enter before the handler runs, leave when it has ended; an exception of the handler passes through."""
        return nullcontext()

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """What is further inside, inside `around`."""
        async with self.around(call):
            return await handler(requests, call)

    def serves(self, method_name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Told of each method before its first call, for those who want to know its shape."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put `intercept` in front of the handler; None where the method is not implemented."""
        return await Chain([self]).intercept_service(continuation, handler_call_details)


class Chain(grpc.aio.ServerInterceptor):
    """Interceptors as one, the first of them outermost.

    What they would do one by one for every call, ten deep, is done once: handlers are wrapped once for each method, and
    a call's headers are read once for all.
    """

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler with all interceptors around it; None where the method is not implemented."""
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
        method, factory = _shape(handler)
        inside = _handled(method, is_unary=not handler.request_streaming)
        for interceptor in reversed(self._interceptors):
            interceptor.serves(method_name, handler)
            inside = functools.partial(interceptor.run, inside)

        async def single(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await inside(requests, Call(method_name, context))

        async def streaming(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with contextlib.closing(Requests(context)) as requests:
                return await inside(requests, Call(method_name, context, requests))

        invoke = streaming if handler.request_streaming else single

        return factory(invoke, handler.request_deserializer, handler.response_serializer)


def _handled(method: Callable[[Any, Any], Any], *, is_unary: bool) -> Handler:
    """A handler of any of the four shapes as one: its single response, or None once it has written all of them.

    is_unary: it takes a single request, not an iterator.
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
    await asyncio.sleep(0)  # where the iterator ended because the caller went away, this raises CancelledError
    # The code that gRPC has for a wrong number of requests.
    raise NotImplementedHere(f"{call.method} takes one request; none came.", reason="REQUEST_MISSING")


def _shape(handler: Any) -> tuple[Callable[[Any, Any], Any], Callable[..., Any]]:
    """The handler's method, and what makes a handler that takes an iterator and answers in the same shape."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return handler.unary_unary, grpc.stream_unary_rpc_method_handler
        case False, True:
            return handler.unary_stream, grpc.stream_stream_rpc_method_handler
        case True, False:
            return handler.stream_unary, grpc.stream_unary_rpc_method_handler
        case _:
            return handler.stream_stream, grpc.stream_stream_rpc_method_handler
