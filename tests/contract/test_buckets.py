"""What every store of token buckets does, on its own real clock: waits are a tenth of a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers import redis_server
from typeless_grpc.access.quota import Quota
from typeless_grpc.access.rate_limit import BucketStore, Taken
from typeless_grpc.clock import FakeClock, SystemClock
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.buckets import FallbackBuckets, MemoryBuckets, RedisBuckets
from typeless_grpc.telemetry.metrics import Metrics

SLOW = Quota(10, 600, 10)  # one a minute: nothing comes back while a test runs
FAST = Quota(10, 1, 10)  # one in 0.1 s


URLS = {
    "redis": "redis_url",
    "sentinel": "redis_sentinel_url",
    "cluster": "redis_cluster_url",
    "redis with fallback": "redis_url",
}


@pytest.fixture(params=["memory", *URLS])
async def buckets(request: pytest.FixtureRequest) -> AsyncIterator[BucketStore]:
    if request.param == "memory":
        yield MemoryBuckets(100)
        return
    shared = RedisBuckets(request.getfixturevalue(URLS[request.param]), timeout_s=5)
    local = MemoryBuckets(100)
    yield shared if request.param != "redis with fallback" else FallbackBuckets(shared, local, SystemClock(), Metrics())
    await shared.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    return str(request.node.name)


async def test_a_bucket_gives_its_burst_and_no_more(buckets: BucketStore, name: str):
    taken = [await buckets.take(name, SLOW, 1) for _ in range(12)]
    assert [t.is_allowed for t in taken] == [True] * 10 + [False] * 2
    assert [t.remaining for t in taken] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert {t.limit for t in taken} == {10}


async def test_a_hundred_at_once_get_exactly_the_burst(buckets: BucketStore, name: str):
    taken = await asyncio.gather(*(buckets.take(name, SLOW, 1) for _ in range(100)))
    assert sum(t.is_allowed for t in taken) == 10


async def test_a_call_that_is_cancelled_at_any_step_ends_as_cancelled(buckets: BucketStore, name: str):
    loop = asyncio.get_running_loop()

    def cancel_after(n_steps: int, call: asyncio.Task[Taken]) -> None:
        if n_steps:
            loop.call_soon(cancel_after, n_steps - 1, call)
        else:
            was_cancelled.append(call.cancel())

    for n_steps in range(20):
        was_cancelled: list[bool] = []
        call = asyncio.create_task(buckets.take(name, SLOW, 1))
        cancel_after(n_steps, call)
        await asyncio.wait([call])
        if not was_cancelled:
            break  # all of its steps were tried
        assert call.cancelled() is was_cancelled[0], n_steps


async def test_a_call_succeeds_after_the_reported_delay(buckets: BucketStore, name: str):
    while (taken := await buckets.take(name, FAST, 1)).is_allowed:
        pass
    assert taken.retry_after_s is not None
    assert 0 < taken.retry_after_s <= 0.11
    await asyncio.sleep(taken.retry_after_s)
    assert (await buckets.take(name, FAST, 1)).is_allowed


async def test_reset_is_the_time_until_the_bucket_is_full(buckets: BucketStore, name: str):
    await buckets.take(name, SLOW, 3)
    taken = await buckets.take(name, SLOW, 1)
    assert taken.reset_after_s == pytest.approx(240, abs=10)


async def test_a_cost_is_taken_as_a_whole_or_not_at_all(buckets: BucketStore, name: str):
    assert (await buckets.take(name, SLOW, 7)).remaining == 3
    refused = await buckets.take(name, SLOW, 4)
    assert (refused.is_allowed, refused.remaining) == (False, 3)
    assert refused.retry_after_s == pytest.approx(60, abs=10)
    assert (await buckets.take(name, SLOW, 3)).is_allowed


async def test_a_cost_above_the_burst_has_no_retry_delay(buckets: BucketStore, name: str):
    taken = await buckets.take(name, SLOW, 11)
    assert (taken.is_allowed, taken.retry_after_s) == (False, None)


@pytest.mark.parametrize("n_taken", [1, 2, 10])
async def test_tokens_that_are_given_back_can_be_taken_again(buckets: BucketStore, name: str, n_taken: int):
    for _ in range(n_taken):
        await buckets.take(name, SLOW, 1)
    for _ in range(n_taken):
        await buckets.give_back(name, SLOW, 1)
    taken = [await buckets.take(name, SLOW, 1) for _ in range(11)]
    assert sum(t.is_allowed for t in taken) == 10


async def test_a_full_bucket_gets_no_fuller(buckets: BucketStore, name: str):
    await buckets.give_back(name, SLOW, 5)
    await buckets.take(name, SLOW, 1)
    await buckets.give_back(name, SLOW, 5)
    taken = [await buckets.take(name, SLOW, 1) for _ in range(12)]
    assert sum(t.is_allowed for t in taken) == 10


async def test_buckets_are_independent(buckets: BucketStore, name: str):
    assert not (await buckets.take(name, SLOW, 11)).is_allowed
    await buckets.take(name, SLOW, 10)
    assert (await buckets.take(f"{name} of another", SLOW, 10)).is_allowed


async def test_a_burst_is_more_than_a_period_refills(buckets: BucketStore, name: str):
    quota = Quota(1, 60, 20)
    assert (await buckets.take(name, quota, 20)).is_allowed
    assert (await buckets.take(name, quota, 1)).retry_after_s == pytest.approx(60, abs=10)


async def test_two_servers_share_the_buckets_of_one_redis(redis_url: str, name: str):
    both = [RedisBuckets(redis_url, timeout_s=5) for _ in range(2)]
    taken = await asyncio.gather(*(both[n % 2].take(name, SLOW, 1) for n in range(100)))
    assert sum(t.is_allowed for t in taken) == 10
    for one in both:
        await one.close()


class Hanging:
    """Shared buckets that answer once a gate is open, and then fail."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.is_called, self.answers = asyncio.Event(), asyncio.Event()
        self.answers.set()

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        self.n_calls += 1
        self.is_called.set()
        await self.answers.wait()
        raise SourceUnavailable("Down.", reason="RATE_LIMITS_UNAVAILABLE")

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        raise NotImplementedError


async def test_one_caller_at_a_time_retries_shared_buckets_that_do_not_answer(name: str):
    shared, clock = Hanging(), FakeClock()
    either = FallbackBuckets(shared, MemoryBuckets(100), clock, Metrics())
    await either.take(name, SLOW, 1)
    shared.answers.clear()
    for n_calls in (2, 3):
        clock.advance(1.1)
        shared.is_called.clear()
        waits = asyncio.create_task(either.take(name, SLOW, 1))
        await shared.is_called.wait()
        clock.advance(5)
        for _ in range(3):
            assert (await either.take(name, SLOW, 1)).is_allowed
        assert shared.n_calls == n_calls
        shared.answers.set()
        await waits
        shared.answers.clear()


async def test_probes_find_out_without_a_call_whether_shared_buckets_answer(tmp_path: Path):
    with redis_server(tmp_path) as server:
        shared, metrics = RedisBuckets(server.url, timeout_s=1.0), Metrics()
        either = FallbackBuckets(shared, MemoryBuckets(100), SystemClock(), metrics)
        seen = []
        for change in (lambda: None, server.kill, server.start):
            change()
            await either.probe()
            seen.append(metrics.registry.get_sample_value("typeless_rate_limit_store_up"))
        await shared.close()
    assert seen == [1, 0, 1]
    assert metrics.registry.get_sample_value("typeless_rate_limit_fallbacks_total") == 0
