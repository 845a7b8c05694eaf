from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.unit.interceptors.harness import echo
from typeless_grpc.client import CallFailed
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor


async def test_idle_comes_when_the_last_call_has_ended():
    drain, began, go = DrainInterceptor(), asyncio.Event(), asyncio.Event()

    async def waits(request: StringValue, context: Any) -> StringValue:
        began.set()
        await go.wait()
        return request

    async with echo([drain], unary_unary=waits) as served:
        await drain.idle()
        call = served.call("unary_unary")
        await began.wait()
        idle = asyncio.create_task(drain.idle())
        await served.answers("unary_stream")
        assert not idle.done()
        go.set()
        await call
        await asyncio.wait_for(idle, 30)


async def test_a_closed_door_sends_new_calls_to_another_replica():
    drain = DrainInterceptor()
    async with echo([StatusInterceptor(), drain]) as served:
        drain.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers("unary_unary")
        await drain.idle()
    failed = CallFailed.of(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert failed.retry_after_s is not None


async def test_a_closed_door_leaves_it_to_some_methods_whom_they_serve_and_waits_for_what_is_left_there():
    left = asyncio.Event()
    drain = DrainInterceptor(decide_themselves=["/test.Echo/unary_unary"])
    drain.when_closing(lambda: None, left.wait)
    async with echo([StatusInterceptor(), drain], service="test.Echo") as served:
        drain.close()
        assert (await served.call("unary_unary", service="test.Echo")).value == "hello"
        settled = asyncio.create_task(drain.settled())
        await drain.idle()
        assert not settled.done()
        left.set()
        await asyncio.wait_for(settled, 30)


async def test_health_and_reflection_pass_a_closed_door_and_are_not_waited_for():
    drain, began, go = DrainInterceptor(), asyncio.Event(), asyncio.Event()

    async def waits(request: StringValue, context: Any) -> StringValue:
        began.set()
        await go.wait()
        return request

    async with echo([drain], service="grpc.health.v1.Health", unary_unary=waits) as served:
        drain.close()
        call = served.call("unary_unary", service="grpc.health.v1.Health")
        await began.wait()
        await drain.idle()
        go.set()
        assert (await call).value == "hello"


async def test_a_call_that_fails_or_is_cancelled_has_ended_too():
    drain, began = DrainInterceptor(), asyncio.Event()

    async def waits(request: StringValue, context: Any) -> StringValue:
        began.set()
        await asyncio.Event().wait()
        return request

    async def fails(request: StringValue, context: Any) -> StringValue:
        raise LookupError

    async with echo([StatusInterceptor(), drain], unary_unary=waits, stream_unary=fails) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.answers("stream_unary")
        call = served.call("unary_unary")
        await began.wait()
        call.cancel()
        await asyncio.wait_for(drain.idle(), 30)
