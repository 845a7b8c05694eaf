"""Bounds of calls: their time, their headers, and their number."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.unit.interceptors.harness import SHAPES, echo
from typeless_grpc.access.methods import Access, Group, Rule, Rules
from typeless_grpc.client import CallFailed
from typeless_grpc.interceptors.deadline import DeadlineInterceptor
from typeless_grpc.interceptors.metadata import MetadataInterceptor
from typeless_grpc.interceptors.open_calls import OpenCallsInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor
from typeless_grpc.telemetry.context import deadline_s

HEALTH = "grpc.health.v1.Health"


def deadline(max_call_s: float, *, is_long_lived: bool = False) -> DeadlineInterceptor:
    rule = Rule(Access.USER, Group.JOBS, is_long_lived)
    return DeadlineInterceptor(Rules({f"/test.Echo/{shape}": rule for shape in SHAPES}), max_call_s)


async def failed(call: Any) -> CallFailed:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return CallFailed.of(caught.value)


async def never(request: StringValue, context: Any) -> StringValue:
    await asyncio.Event().wait()
    return request


async def test_a_call_that_takes_too_long_is_ended():
    async with echo([StatusInterceptor(), deadline(0.05)], unary_unary=never) as served:
        error = await failed(served.answers("unary_unary"))
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TOO_LONG")


async def test_a_long_lived_call_is_not_ended():
    async def a_while(request: StringValue, context: Any) -> StringValue:
        await asyncio.sleep(0.1)
        return request

    async with echo([StatusInterceptor(), deadline(0.01, is_long_lived=True)], unary_unary=a_while) as served:
        assert await served.answers("unary_unary") == ["hello"]


async def test_a_timeout_error_of_the_handler_is_not_a_call_timeout():
    async def times_out(request: StringValue, context: Any) -> StringValue:
        raise TimeoutError

    async with echo([StatusInterceptor(), deadline(60)], unary_unary=times_out) as served:
        assert (await failed(served.answers("unary_unary"))).reason == "INTERNAL"


@pytest.mark.parametrize(
    ("timeout_s", "is_long_lived", "left_s"),
    [(10, False, 10), (10, True, 10), (90, False, 60), (None, False, 60), (None, True, None)],
)
async def test_the_handler_knows_the_calls_deadline(timeout_s: float | None, is_long_lived: bool, left_s: float | None):
    seen: list[float | None] = []

    async def note_deadline(request: StringValue, context: Any) -> StringValue:
        moment = deadline_s.get()
        seen.append(None if moment is None else moment - time.monotonic())
        return request

    async with echo([deadline(60, is_long_lived=is_long_lived)], unary_unary=note_deadline) as served:
        await served.answers("unary_unary", timeout=timeout_s)
    (seen_s,) = seen
    if left_s is None:
        assert seen_s is None
    else:
        assert seen_s is not None
        assert left_s - 9 < seen_s < left_s + 0.1  # less, on a machine that stalls
    assert deadline_s.get() is None


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_with_too_many_headers_is_refused(shape: str):
    async with echo([StatusInterceptor(), MetadataInterceptor(20)]) as served:
        assert await served.answers(shape, metadata=[("a", "b")] * 10)
        error = await failed(served.answers(shape, metadata=[("a", "b")] * 21))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_HEADERS")


async def test_a_call_beyond_the_limit_is_refused_until_another_ends():
    running, gate = asyncio.Event(), asyncio.Event()

    async def held(request: StringValue, context: Any) -> StringValue:
        running.set()
        await gate.wait()
        return request

    async with echo([StatusInterceptor(), OpenCallsInterceptor(1)], unary_unary=held) as served:
        first = asyncio.create_task(served.answers("unary_unary"))
        await running.wait()
        error = await failed(served.answers("unary_stream"))
        gate.set()
        await first
        assert await served.answers("unary_stream") == ["hello"] * 2
    assert (error.code, error.reason, error.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED", 1.0)


async def test_a_cancelled_call_is_no_longer_open():
    async with echo([StatusInterceptor(), OpenCallsInterceptor(1)], unary_unary=never) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.answers("unary_unary", timeout=0.05)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await served.answers("unary_stream") == ["hello"] * 2
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
