"""A Redis that is full, holds what is not ours, or whose machine has another time, harms no caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from tests.servers import RedisServer, redis_server
from typeless_grpc.access.quota import Quota
from typeless_grpc.clock import SystemClock
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.buckets import FallbackBuckets, MemoryBuckets, RedisBuckets
from typeless_grpc.telemetry.metrics import Metrics

SLOW = Quota(10, 600, 10)  # one a minute: nothing comes back while a test runs
HOUR_S = 3600


@pytest.fixture
async def shared(redis_process: RedisServer) -> AsyncIterator[RedisBuckets]:
    buckets = RedisBuckets(redis_process.url, timeout_s=5)
    yield buckets
    await buckets.close()


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def client(redis_process: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_process.url, decode_responses=True) as connection:
        yield connection


@pytest.mark.parametrize("wrong", ["list", "hash", "words", "nan", "empty"])
async def test_a_wrong_entry_is_a_full_bucket(shared: RedisBuckets, client: redis.asyncio.Redis, wrong: str):
    await shared.take("a", SLOW, 10)
    (entry,) = await client.keys()
    await client.delete(entry)
    match wrong:
        case "list":
            await client.rpush(entry, "1")
        case "hash":
            await client.hset(entry, "a", "1")
        case _:
            await client.set(entry, "" if wrong == "empty" else wrong)
    await shared.give_back("a", SLOW, 1)
    taken = [await shared.take("a", SLOW, 1) for _ in range(12)]
    assert [one.is_allowed for one in taken] == [True] * 10 + [False] * 2
    assert float(await client.get(entry)) > 0


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])
async def test_a_step_of_its_clock_refuses_nobody_for_longer_than_an_empty_bucket(
    shared: RedisBuckets, client: redis.asyncio.Redis, step_s: int
):
    await shared.take("a", SLOW, 10)
    (entry,) = await client.keys()
    await client.set(entry, float(await client.get(entry)) - step_s)  # for Redis, as if its clock had been set
    taken = await shared.take("a", SLOW, 1)
    if step_s > 0:
        assert taken.remaining == 9
    else:
        assert taken.retry_after_s == pytest.approx(60, abs=10)
        assert taken.reset_after_s == pytest.approx(600, abs=10)
        assert await client.ttl(entry) <= 600


async def fill(client: redis.asyncio.Redis) -> None:
    for n in range(10_000):
        await client.set(f"ballast {n}", b"\0" * 10_000)


async def test_a_full_redis_leaves_each_server_its_own_limits(tmp_path: Path):
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        client = redis.asyncio.Redis.from_url(server.url)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await fill(client)
        buckets, metrics = RedisBuckets(server.url, timeout_s=5), Metrics()
        began_s = time.monotonic()
        with pytest.raises(SourceUnavailable) as caught:
            await buckets.take("a", SLOW, 1)
        assert time.monotonic() - began_s < 4  # not after timeout_s
        assert caught.value.reason == "RATE_LIMITS_UNAVAILABLE"
        either = FallbackBuckets(buckets, MemoryBuckets(100), SystemClock(), metrics)
        assert sum([(await either.take("a", SLOW, 1)).is_allowed for _ in range(12)]) == 10
        await client.flushall()
        await asyncio.sleep(1.1)  # RETRY_S: until then no call tries Redis
        await either.take("a", SLOW, 1)
        assert metrics.registry.get_sample_value("typeless_rate_limit_store_up") == 1
        assert (await buckets.take("a", SLOW, 1)).remaining == 8
        await buckets.close()
        await client.aclose()
