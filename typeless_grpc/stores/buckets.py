"""Token buckets of throttled-py: in this process, or in a Redis that all servers share.

We use its algorithm GCRA, which keeps a token bucket as one moment in time and refills it continuously. Its algorithm
"token bucket" counts whole seconds and drops fractions. In Redis it runs as a script on Redis's own clock, so it is
exact for any number of servers, whatever their clocks. If Redis's clock is set back, a bucket is empty at worst.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import redis.exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from throttled import types, utils
from throttled.asyncio.rate_limiter import GCRARateLimiter, per_duration
from throttled.asyncio.rate_limiter.gcra import RedisLimitAtomicAction
from throttled.asyncio.store import (
    BaseMemoryAtomicAction,
    BaseRedisAtomicAction,
    BaseStore,
    MemoryStore,
    RedisStore,
    RedisStoreBackend,
)
from throttled.exceptions import StoreUnavailableError
from throttled.rate_limiter.gcra import GCRARateLimiterCoreMixin

from typeless_grpc.access.quota import Quota
from typeless_grpc.access.rate_limit import BucketStore, Taken
from typeless_grpc.clock import Clock
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.reachability import Reachability

T = TypeVar("T")

GIVE_BACK = "give_back"
MAX_QUOTAS = 1000  # limiters kept, one for each quota in use; the least recently used are dropped first
WAIT_MARGIN_S = 0.001  # added to every wait, so that no caller comes back a rounding error early
PROBE_EVERY_S = 2.0
PROBE_BUCKET, PROBE_QUOTA = "probe", Quota(amount=1000, period_s=1, burst=1000)
RETRY_S = 1.0  # between attempts to reach an unavailable Redis


# Lua: an entry as a moment, nil or false if it is none, and the clock of the library's own scripts, seconds since the
# start of 2025.
_READ = """
    local kept = redis.pcall("GET", KEYS[1])
    local tat = type(kept) == "string" and tonumber(kept)
    if tat ~= tat then tat = nil end
    local now = redis.call("TIME")
    now = (now[1] - 1735660800) + (now[2] / 1000000)
"""


class RedisTake(RedisLimitAtomicAction):
    """The library's action, on an entry that it repairs first.

    An entry of another type would be an error for each call, which puts all buckets out of use. An emptier bucket than
    can be is left behind by a clock of Redis's machine that was ahead; its callers would wait until that time comes.
    """

    # The library's script follows in the same chunk of Lua.
    SCRIPTS = (
        f"do {_READ}"
        """
        local full = tonumber(ARGV[1]) * tonumber(ARGV[2])
        if kept and not tat then
            redis.call("DEL", KEYS[1])
        elseif tat and tat > now + full then
            redis.call("SET", KEYS[1], now + full, "EX", math.ceil(full))
        end
    end
    """ + RedisLimitAtomicAction.SCRIPTS
    )


class RedisGiveBack(BaseRedisAtomicAction):
    """Moves a bucket's moment back by the returned tokens; a full bucket needs no entry."""

    TYPE = GIVE_BACK
    SCRIPT = f"""
    {_READ}
    if not tat then return {{0, 0}} end
    tat = tat - tonumber(ARGV[1]) * tonumber(ARGV[2])
    if tat <= now then
        redis.call("DEL", KEYS[1])
    else
        redis.call("SET", KEYS[1], tat, "EX", math.ceil(tat - now))
    end
    return {{0, 0}}
    """

    def __init__(self, backend: RedisStoreBackend) -> None:
        super().__init__(backend)
        self._script = self._register_script(self.SCRIPT)

    async def do(self, keys: Sequence[types.KeyT], args: Sequence[types.StoreValueT] | None) -> tuple[int | float, ...]:
        """keys: the bucket; args: seconds for one token, how many tokens."""
        answer: tuple[int | float, ...] = await self._script(keys, args)
        return answer


class MemoryGiveBack(BaseMemoryAtomicAction):
    """The same for buckets in this process."""

    TYPE = GIVE_BACK

    @classmethod
    def _do(
        cls, backend: Any, keys: Sequence[types.KeyT], args: Sequence[types.StoreValueT] | None
    ) -> tuple[int | float, ...]:
        tat = backend.get(keys[0])
        if tat is not None and args is not None:
            tat -= float(args[0]) * float(args[1])
            left_s = tat - utils.now_mono_f()
            if left_s <= 0:
                backend.delete(keys[0])
            else:
                backend.set(keys[0], tat, math.ceil(left_s))
        return 0, 0


class RefundingLimiter(GCRARateLimiter):
    """The library's limiter, with a call that gives tokens back."""

    class Meta(GCRARateLimiterCoreMixin.Meta):
        type = "typeless_gcra"

    _DEFAULT_ATOMIC_ACTION_CLASSES = (
        *GCRARateLimiter._DEFAULT_ATOMIC_ACTION_CLASSES,
        RedisTake,
        RedisGiveBack,
        MemoryGiveBack,
    )

    async def give_back(self, key: str, cost: int) -> None:
        """Undo `limit`."""
        bucket, interval_s, _ = self._prepare(key)
        await self._atomic_actions[GIVE_BACK].do([bucket], [interval_s, cost])


class ThrottledBuckets:
    """See `BucketStore`; over any store of throttled-py."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        self._limiter = functools.lru_cache(MAX_QUOTAS)(self._new_limiter)

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        """See `BucketStore`."""
        result = await self._limiter(quota).limit(bucket, cost)
        state = result.state
        if not result.limited:
            return Taken(True, state.limit, state.remaining, state.reset_after)
        can_ever = cost <= quota.burst
        retry_after_s = state.retry_after + WAIT_MARGIN_S if can_ever else None
        return Taken(False, state.limit, max(0, state.remaining), state.reset_after, retry_after_s)

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        """See `BucketStore`."""
        await self._limiter(quota).give_back(bucket, cost)

    def _new_limiter(self, quota: Quota) -> RefundingLimiter:
        rate = per_duration(timedelta(seconds=quota.period_s), quota.amount, quota.burst)
        return RefundingLimiter(rate, self._store, key_prefix="typeless")


class MemoryBuckets(ThrottledBuckets):
    """Buckets in this process. max_buckets: beyond it, the least recently used are dropped, and so become full."""

    def __init__(self, max_buckets: int) -> None:
        super().__init__(MemoryStore(options={"MAX_SIZE": max_buckets}))


class RedisBuckets(ThrottledBuckets):
    """Buckets in a Redis that servers share. Calls raise SourceUnavailable if it does not answer in time."""

    def __init__(self, url: str, *, timeout_s: float, max_connections: int = 32) -> None:
        """url: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://. timeout_s: to connect, to answer.

        max_connections: further calls wait for a free one; sentinels and clusters open as many as there are calls.
        Raises ValueError for another url.
        """
        self._timeout_s = timeout_s
        # Without socket_timeout, `_reached` bounds the answers: redis-py would wait with `asyncio.wait_for`, which
        # swallows a cancellation before Python 3.12, so that a call went on whose caller had cancelled.
        timeouts = {"socket_timeout": None, "socket_connect_timeout": timeout_s}
        # One retry, at once: a pooled connection may belong to a Redis that has restarted since.
        retry = Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))
        options: dict[str, Any] = {"CONNECTION_POOL_KWARGS": {"retry": retry, **timeouts}}
        if url.startswith("redis+sentinel://"):
            options["SENTINEL_KWARGS"] = timeouts
        elif url.startswith("redis+cluster://"):
            options["REDIS_CLIENT_KWARGS"] = timeouts  # it has no pool, but one for each node
        else:
            options["CONNECTION_POOL_CLASS"] = "redis.asyncio.BlockingConnectionPool"
            options["CONNECTION_POOL_KWARGS"] |= {"max_connections": max_connections, "timeout": timeout_s}
        self._redis = RedisStore(url, options)
        self._client: Any = self._redis._backend.get_client()  # made now, because it checks the url
        super().__init__(self._redis)

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        """See `BucketStore`."""
        return await self._reached(super().take(bucket, quota, cost))

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        """See `BucketStore`."""
        await self._reached(super().give_back(bucket, quota, cost))

    async def _reached(self, work: Awaitable[T]) -> T:
        try:
            # Bounds the whole call, with its wait for a connection and the requests to sentinels and nodes before.
            async with asyncio.timeout(self._timeout_s):
                return await work
        except (StoreUnavailableError, redis.exceptions.RedisError, OSError) as error:
            raise SourceUnavailable(
                "The shared rate limits are unavailable now.", reason="RATE_LIMITS_UNAVAILABLE", retry_after_s=RETRY_S
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        pool = getattr(self._client, "connection_pool", None)  # a cluster's client closes its own
        if pool is None:
            await self._client.aclose()
            return
        await self._client.aclose(close_connection_pool=True)
        if isinstance(pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()


class FallbackBuckets:
    """Shared buckets, and local ones while the shared ones are unavailable.

    The first failure is logged once. For `RETRY_S` after each failure no call tries the shared buckets, so that calls
    do not each wait for a dead server. Then one call tries, and its success ends the fallback for all.
    """

    def __init__(self, shared: BucketStore, local: BucketStore, clock: Clock, metrics: Metrics) -> None:
        self._shared = shared
        self._local = local
        self._clock = clock
        self._fallbacks = metrics.rate_limit_fallbacks
        self._reached = Reachability("shared rate limits", metrics.rate_limit_store_up)
        self._unavailable_until_s: float | None = None
        self._is_tried = False

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        """See `BucketStore`."""
        return await self._either(lambda buckets: buckets.take(bucket, quota, cost))

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        """See `BucketStore`."""
        await self._either(lambda buckets: buckets.give_back(bucket, quota, cost))

    async def watch(self) -> None:
        """Try the shared buckets every few seconds, until cancelled, so that their state is known without any call."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await self.probe()

    async def probe(self) -> None:
        """Check once whether the shared buckets answer, with a bucket of no caller."""
        if self._is_tried:
            return
        self._is_tried = self._unavailable_until_s is not None
        with contextlib.suppress(SourceUnavailable):
            await self._shared_answer(lambda buckets: buckets.take(PROBE_BUCKET, PROBE_QUOTA, 1))

    async def _either(self, ask: Callable[[BucketStore], Awaitable[T]]) -> T:
        if self._unavailable_until_s is not None:
            if self._is_tried or self._clock.now_s() < self._unavailable_until_s:
                return await self._on_its_own(ask)
            self._is_tried = True  # by this call; others use the fallback meanwhile
        try:
            return await self._shared_answer(ask)
        except SourceUnavailable:
            return await self._on_its_own(ask)

    async def _shared_answer(self, ask: Callable[[BucketStore], Awaitable[T]]) -> T:
        """Call the shared buckets, and note whether they answer. Raises SourceUnavailable."""
        try:
            answer = await ask(self._shared)
        except SourceUnavailable:
            self._unavailable_until_s = self._clock.now_s() + RETRY_S
            self._reached.report(False)
            raise
        finally:
            self._is_tried = False
        self._unavailable_until_s = None
        self._reached.report(True)
        return answer

    async def _on_its_own(self, ask: Callable[[BucketStore], Awaitable[T]]) -> T:
        self._fallbacks.inc()
        return await ask(self._local)


class RefusingBuckets:
    """Refuses all calls: the fallback for operators who prefer refusals to calls beyond a quota."""

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        """Always raises SourceUnavailable."""
        raise SourceUnavailable(
            "The shared rate limits are unavailable now.", reason="RATE_LIMITS_UNAVAILABLE", retry_after_s=RETRY_S
        )

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        """Do nothing: the call was admitted before."""
