from __future__ import annotations

import pytest

from typeless_grpc.app.access import open_access
from typeless_grpc.config import Settings
from typeless_grpc.errors import InvalidInput
from typeless_grpc.telemetry.metrics import Metrics


@pytest.mark.parametrize("url", ["redis://h:pa/ss@host", "redis+sentinel://host:port/name", "redis+cluster://host:"])
async def test_a_redis_that_no_call_could_reach_ends_the_start_and_not_the_first_call(url: str):
    with pytest.raises(InvalidInput) as caught:
        async with open_access(Settings(redis_url=url), Metrics()):
            pass
    assert (caught.value.reason, caught.value.message) == ("CONFIG_INVALID", "redis_url: is no URL of a Redis")
