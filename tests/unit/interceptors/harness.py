"""A real server with one call of each shape, so that an interceptor meets what it will meet.

Messages are StringValue. A server, a call and its end take some 8 ms: a mocked context would save nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

SERVICE = "test.Echo"
Handler = Callable[[Any, Any], Any]
SHAPES = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True)
class Echo:
    channel: grpc.aio.Channel

    def call(self, shape: str, *texts: str, service: str = SERVICE, **options: Any) -> Any:
        """Begin a call of this shape; texts are its request messages."""
        multi = getattr(self.channel, shape)(
            f"/{service}/{shape}", StringValue.SerializeToString, StringValue.FromString
        )
        messages = [StringValue(value=text) for text in texts or ("hello",)]
        return multi(iter(messages) if shape.startswith("stream") else messages[0], **options)

    async def answers(self, shape: str, *texts: str, **options: Any) -> list[str]:
        """The texts of all response messages. Raises AioRpcError."""
        call = self.call(shape, *texts, **options)
        if shape.endswith("stream"):
            return [message.value async for message in call]
        return [(await call).value]


async def unary_unary(request: StringValue, context: Any) -> StringValue:
    return request


async def unary_stream(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
    yield request
    yield request


async def stream_unary(requests: AsyncIterator[StringValue], context: Any) -> StringValue:
    return StringValue(value=" ".join([request.value async for request in requests]))


async def stream_stream(requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield request


@asynccontextmanager
async def echo(
    interceptors: Sequence[grpc.aio.ServerInterceptor], *, service: str = SERVICE, **handlers: Handler
) -> AsyncIterator[Echo]:
    """handlers: by shape, in place of those that echo."""
    usual: dict[str, Handler] = {
        "unary_unary": unary_unary,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }
    methods = {
        shape: SHAPES[shape](handler, StringValue.FromString, StringValue.SerializeToString)
        for shape, handler in (usual | handlers).items()
    }
    server = grpc.aio.server(interceptors=list(interceptors))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Echo(channel)
    finally:
        await server.stop(None)
