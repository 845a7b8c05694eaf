from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.unit.interceptors.harness import SHAPES, echo
from typeless_grpc.interceptors.seam import Call, Interceptor

ECHOED = {
    "unary_unary": ["hello"],
    "unary_stream": ["hello", "hello"],
    "stream_unary": ["hello"],
    "stream_stream": ["hello"],
}
inside: ContextVar[str] = ContextVar("inside", default="")


class Recorder(Interceptor):
    """Writes down what passes, and sets a context variable as long as the call lasts."""

    def __init__(self, name: str = "it") -> None:
        self.name = name
        self.events: list[str] = []
        self.left = asyncio.Event()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        self.events.append(f"{self.name} enters {call.method}")
        token = inside.set(self.name)
        try:
            yield
        except BaseException as error:
            self.events.append(f"{self.name} sees {type(error).__name__}")
            raise
        finally:
            inside.reset(token)
            self.events.append(f"{self.name} leaves")
            self.left.set()


@pytest.mark.parametrize("shape", SHAPES)
async def test_around_surrounds_a_call_of_every_shape(shape: str):
    recorder = Recorder()
    async with echo([recorder]) as served:
        assert await served.answers(shape) == ECHOED[shape]
        await recorder.left.wait()
    assert recorder.events == [f"it enters /test.Echo/{shape}", "it leaves"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_first_interceptor_is_outermost(shape: str):
    outer, inner = Recorder("outer"), Recorder("inner")
    outer.events = inner.events
    async with echo([outer, inner]) as served:
        await served.answers(shape)
        await outer.left.wait()
    assert [event.partition(" /")[0] for event in inner.events] == [
        "outer enters",
        "inner enters",
        "inner leaves",
        "outer leaves",
    ]


async def fails(request: Any, context: Any) -> StringValue:
    raise LookupError


async def fails_on_the_way(request: Any, context: Any) -> AsyncIterator[StringValue]:
    yield StringValue(value="first")
    raise LookupError


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_a_handler_raises_passes_through_around(shape: str):
    recorder = Recorder()
    handler = fails_on_the_way if shape.endswith("stream") else fails
    async with echo([recorder], **{shape: handler}) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.answers(shape)
        await recorder.left.wait()
    assert recorder.events[1:] == ["it sees LookupError", "it leaves"]


async def test_a_stream_cancelled_under_back_pressure_is_cleaned_up_at_once_and_in_its_own_context():
    recorder = Recorder()
    cleaned: list[str] = []

    async def endless(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue(value="x" * 1_000_000)
        finally:
            cleaned.append(inside.get())

    async with echo([recorder], unary_stream=endless) as served:
        call = served.call("unary_stream")
        await call.read()
        call.cancel()
        async with asyncio.timeout(30):
            await recorder.left.wait()
    assert cleaned == ["it"]
    assert recorder.events[-1] == "it leaves"


async def test_metadata_is_read_by_its_first_value():
    seen: list[str | None] = []

    class Reader(Interceptor):
        @asynccontextmanager
        async def around(self, call: Call) -> AsyncIterator[None]:
            seen.extend([call.metadata("x-a"), call.metadata("x-b-bin"), call.metadata("x-c")])
            yield

    async with echo([Reader()]) as served:
        await served.answers("unary_unary", metadata=(("x-a", "1"), ("x-a", "2"), ("x-b-bin", b"raw")))
    assert seen == ["1", "raw", None]


async def test_an_unknown_method_is_unimplemented():
    recorder = Recorder()
    async with echo([recorder]) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers("unary_unary", service="test.Nobody")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert recorder.events == []
