from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.unit.interceptors.harness import SERVICE, SHAPES, echo
from typeless_grpc.client import CallFailed
from typeless_grpc.errors import TooLarge
from typeless_grpc.interceptors.message_size import MAX_FIELDS, MessageSizeInterceptor
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


@pytest.mark.parametrize("inner", [None, bytes, StringValue], ids=["none", "bytes", "a class"])
def test_requests_that_are_not_parsed_by_a_message_class_are_left_alone(inner: Any):
    assert MessageSizeInterceptor(LIMIT_BYTES).deserializer(inner) is inner


def test_a_message_class_counts_fields_first():
    parse = MessageSizeInterceptor(LIMIT_BYTES).deserializer(StringValue.FromString)
    assert parse(StringValue(value="hello").SerializeToString()).value == "hello"
    with pytest.raises(TooLarge) as caught:
        parse(b"\x98\x06\x01" * (MAX_FIELDS + 1))
    assert caught.value.reason == "TOO_MANY_FIELDS"
