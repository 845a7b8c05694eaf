from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.unit.interceptors.harness import echo
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.telemetry.context import request_id


async def id_inside_and_outside(*metadata: tuple[str, str]) -> tuple[str, str]:
    """The id that the handler saw, and the one the caller got back."""

    async def tells(request: StringValue, context: Any) -> StringValue:
        return StringValue(value=request_id.get())

    async with echo([RequestIdInterceptor()], unary_unary=tells) as served:
        call = served.call("unary_unary", metadata=metadata)
        inside = (await call).value
        return inside, str((await call.trailing_metadata())["x-request-id"])


async def test_a_callers_id_is_kept():
    assert await id_inside_and_outside(("x-request-id", "web/7:a=b@c+d._-")) == ("web/7:a=b@c+d._-",) * 2


@pytest.mark.parametrize("given", ["with space", "x" * 129, 'quote"', "{}"])
async def test_an_id_that_could_inject_log_lines_is_replaced(given: str):
    inside, outside = await id_inside_and_outside(("x-request-id", given))
    assert inside == outside != given
    assert len(inside) == 32


async def test_a_call_without_an_id_gets_a_new_one():
    first, second = await id_inside_and_outside(), await id_inside_and_outside()
    assert first[0] == first[1]
    assert first != second


async def test_outside_of_calls_there_is_no_id():
    await id_inside_and_outside(("x-request-id", "one"))
    assert request_id.get() == ""
