"""The one place where interceptors meet grpc.aio: the same few lines around a call of any of the four shapes.

grpc-interceptor passes streamed responses through an async generator, which grpc.aio leaves to the garbage collector
when a client cancels under back-pressure: what the handler must clean up is then cleaned up late and in another
context. So the shape here is always a coroutine, and responses leave through `context.write`.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_interceptor.server import AsyncServerInterceptor


@dataclass(frozen=True)
class Call:
    """A call on its way in. method: "/package.Service/Method"."""

    method: str
    context: grpc.aio.ServicerContext[Any, Any]

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


# Takes a request, or an iterator of them, and its call.
Handler = Callable[[Any, Call], Awaitable[Any]]


class Interceptor(AsyncServerInterceptor):
    """One concern around every call: what `around` does before its `yield`, after it, and with what is raised there."""

    @abstractmethod
    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Enter before the handler runs, leave when it has ended; an exception of the handler passes through."""

    async def run(self, handler: Handler, request_or_iterator: Any, call: Call) -> Any:
        """What is further inside, inside `around`."""
        async with self.around(call):
            return await handler(request_or_iterator, call)

    async def intercept(
        self,
        method: Callable[[Any, Any], Any],
        request_or_iterator: Any,
        context: grpc.aio.ServicerContext[Any, Any],
        method_name: str,
    ) -> Any:
        """The same for a handler of whichever shape: what the base class asks for."""
        return await self.run(_handled(method), request_or_iterator, Call(method_name, context))

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
        inside = _handled(method)
        for interceptor in reversed(self._interceptors):
            interceptor.serves(method_name, handler)
            inside = functools.partial(interceptor.run, inside)

        async def invoke(request_or_iterator: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await inside(request_or_iterator, Call(method_name, context))

        return factory(invoke, handler.request_deserializer, handler.response_serializer)


def _handled(method: Callable[[Any, Any], Any]) -> Handler:
    """A handler of any of the four shapes as one: its single response, or None once it has written all of them."""

    async def handle(request_or_iterator: Any, call: Call) -> Any:
        answer = method(request_or_iterator, call.context)
        if inspect.isasyncgen(answer):
            async with aclosing(answer) as messages:
                async for message in messages:
                    await call.context.write(message)
            return None
        return await answer

    return handle


def _shape(handler: Any) -> tuple[Callable[[Any, Any], Any], Callable[..., Any]]:
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return handler.unary_unary, grpc.unary_unary_rpc_method_handler
        case False, True:
            return handler.unary_stream, grpc.unary_stream_rpc_method_handler
        case True, False:
            return handler.stream_unary, grpc.stream_unary_rpc_method_handler
        case _:
            return handler.stream_stream, grpc.stream_stream_rpc_method_handler
