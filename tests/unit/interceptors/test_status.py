from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2

from tests.unit.interceptors.harness import echo
from typeless_grpc import errors
from typeless_grpc.client import CallFailed
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.status import CODES, StatusInterceptor, status_of

FAMILY = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.TypelessError)]


def example(family: type[errors.TypelessError]) -> errors.TypelessError:
    if family is errors.InvalidInput:
        return errors.InvalidInput("audio.format", "is wrong", reason="SOME_REASON")
    return family("A sentence.", reason="SOME_REASON")


async def ended_with(error: BaseException, *interceptors: grpc.aio.ServerInterceptor) -> CallFailed:
    async def fails(request: StringValue, context: Any) -> StringValue:
        raise error

    async with echo([*interceptors, StatusInterceptor()], unary_unary=fails) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers("unary_unary", metadata=(("x-request-id", "call-1"),))
    return CallFailed.of(caught.value)


def test_every_error_of_the_family_has_a_code():
    assert set(CODES) == set(FAMILY) - {errors.TypelessError}


@pytest.mark.parametrize("family", CODES, ids=lambda family: family.__name__)
async def test_an_error_of_the_family_becomes_its_code_and_reason(family: type[errors.TypelessError]):
    failed = await ended_with(example(family))
    assert (failed.code, failed.reason, failed.message) == (CODES[family], "SOME_REASON", example(family).message)


def test_every_status_has_the_domain_of_its_reason():
    for family in CODES:
        info = error_details_pb2.ErrorInfo()
        assert status_of(example(family)).details[0].Unpack(info)
        assert info.domain == "typeless"


async def test_each_wrong_field_is_a_field_violation():
    violations = [errors.FieldViolation("options.language", "is odd"), errors.FieldViolation("audio", "is missing")]
    failed = await ended_with(errors.InvalidInput.of(violations))
    assert failed.fields == (("options.language", "is odd"), ("audio", "is missing"))


@pytest.mark.parametrize(("quota", "description"), [("10 calls in 60 s", "10 calls in 60 s"), ("", "You have 3.")])
def test_a_quota_that_is_used_up_is_described(quota: str, description: str):
    failure = error_details_pb2.QuotaFailure()
    error = errors.RateLimited("You have 3.", reason="TOO_MANY_STREAMS", subject="key:k1", quota=quota)
    assert status_of(error).details[1].Unpack(failure)
    assert [(one.subject, one.description) for one in failure.violations] == [("key:k1", description)]


@pytest.mark.parametrize("retry_after_s", [0.0, 0.25, 90.0])
async def test_an_error_has_retry_info_if_waiting_helps(retry_after_s: float):
    failed = await ended_with(errors.RateLimited("Slow down.", reason="RATE_LIMITED", retry_after_s=retry_after_s))
    assert failed.retry_after_s == retry_after_s
    assert (await ended_with(errors.NotFound("Gone.", reason="GONE"))).retry_after_s is None


async def test_an_unforeseen_error_is_internal_and_does_not_reveal_its_text(caplog: pytest.LogCaptureFixture):
    failed = await ended_with(ZeroDivisionError("password=hunter2"), RequestIdInterceptor())
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "hunter2" not in str(failed)
    assert "call-1" in failed.message
    # The operator finds it in the log instead, with its traceback.
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_method_without_implementation_is_unimplemented():
    failed = await ended_with(NotImplementedError("Method not implemented!"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_other_trailers_survive_an_error():
    assert (await ended_with(ValueError("x"), RequestIdInterceptor())).request_id == "call-1"


async def test_an_error_in_the_middle_of_a_stream_follows_the_responses():
    async def fails_later(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        raise errors.EngineFailed("It broke.")

    async with echo([StatusInterceptor()], unary_stream=fails_later) as served:
        call = served.call("unary_stream")
        assert (await call.read()).value == "first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert CallFailed.of(caught.value).reason == "ENGINE_FAILED"


async def test_a_call_that_is_aborted_keeps_its_own_status():
    async def aborts(request: StringValue, context: Any) -> StringValue:
        await context.abort(grpc.StatusCode.DATA_LOSS, "as it is")
        raise AssertionError

    async with echo([StatusInterceptor()], unary_unary=aborts) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.answers("unary_unary")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "as it is")


async def test_a_cancellation_by_the_caller_is_not_an_error():
    began, ended = asyncio.Event(), asyncio.Event()

    async def waits(request: StringValue, context: Any) -> StringValue:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with echo([StatusInterceptor()], unary_unary=waits) as served:
        call = served.call("unary_unary")
        await began.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 30)
