from __future__ import annotations

import grpc
import pytest

from tests.unit.interceptors.harness import SERVICE, SHAPES, echo
from typeless_grpc.client import CallFailed
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor

# A StringValue of n < 128 characters is n + 2 bytes on the wire.
LIMIT_BYTES = 102


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_message_over_the_limit_is_refused_in_every_shape(shape: str):
    async with echo([StatusInterceptor(), MessageSizeInterceptor(LIMIT_BYTES)]) as served:
        assert await served.answers(shape, "x" * 100)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers(shape, "x" * 101)
    failed = CallFailed.of(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert "103 bytes" in failed.message


async def test_each_message_of_a_stream_is_checked_separately():
    async with echo([StatusInterceptor(), MessageSizeInterceptor(LIMIT_BYTES)]) as served:
        assert await served.answers("stream_stream", *["x" * 100] * 3) == ["x" * 100] * 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers("stream_stream", "x", "x" * 101, "x")
    assert CallFailed.of(caught.value).reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("shape", SHAPES)
async def test_malformed_messages_are_invalid_arguments_in_every_shape(shape: str):
    async with echo([StatusInterceptor(), MessageSizeInterceptor(LIMIT_BYTES)]) as served:
        call = getattr(served.channel, shape)(f"/{SERVICE}/{shape}")
        sent = call(iter([b"\xff\xff"]) if shape.startswith("stream") else b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (anext(aiter(sent)) if shape.endswith("stream") else sent)
    failed = CallFailed.of(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")
