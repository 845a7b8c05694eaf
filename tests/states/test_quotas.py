"""Token buckets in memory and in Redis, beside a number that grows; and what calls are charged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from throttled import utils
from throttled.asyncio.rate_limiter.gcra import RedisLimitAtomicAction

from tests.servers import redis_server
from tests.states.machines import CountedMachine, check, finds
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit, whole
from typeless_grpc.access.rate_limit import BucketStore, CallCharge, Limiter, Taken
from typeless_grpc.clock import FakeClock
from typeless_grpc.errors import InvalidInput, Overloaded, RateLimited
from typeless_grpc.stores import buckets
from typeless_grpc.stores.buckets import MemoryBuckets, RedisBuckets

# A token in a whole number of seconds, so that no rounding decides; and so slowly that Redis, which deletes a full
# bucket by its real clock, deletes none.
QUOTAS = [Quota(1, 64, 1), Quota(2, 128, 5), Quota(8, 1024, 8), Quota(1, 256, 20)]
NAMES = st.sampled_from(["a", "b"])
T0_S = 50_000_000.0  # of Redis's scripts; any time


class Bucket:
    """The reference: tokens, to which time adds."""

    def __init__(self, quota: Quota, now_s: float) -> None:
        self.quota, self.tokens, self.seen_s = quota, float(quota.burst), now_s

    def at(self, now_s: float) -> float:
        grown = self.tokens + (now_s - self.seen_s) * self.quota.amount / self.quota.period_s
        self.tokens, self.seen_s = min(float(self.quota.burst), grown), now_s
        return self.tokens

    def wait_s(self, n_tokens: float) -> float:
        return n_tokens * self.quota.period_s / self.quota.amount


class Buckets(CountedMachine):
    """One store of buckets. open_store: returns it, what sets its clock, and the loop that it needs."""

    def __init__(self, store: BucketStore, set_clock: Callable[[float], Any], run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.store, self.set_clock, self.run = store, set_clock, run  # type: ignore[method-assign]
        self.now_s = T0_S
        self.set_clock(self.now_s)
        self.example = f"{id(self)} {CountedMachine.n_examples}"

    @initialize(quota=st.sampled_from(QUOTAS))
    def begin(self, quota: Quota) -> None:
        self.quota = quota
        self.known = {name: Bucket(quota, self.now_s) for name in "ab"}
        self.taken = dict.fromkeys("ab", 0)

    @rule(name=NAMES, cost=st.integers(1, 9))
    def take(self, name: str, cost: int) -> None:
        bucket = self.known[name]
        tokens = bucket.at(self.now_s)
        taken = self.answer(name, cost)
        assert taken.is_allowed is (cost <= tokens)
        if taken.is_allowed:
            bucket.tokens -= cost
            self.taken[name] += cost
            assert taken.retry_after_s == 0
        elif cost > self.quota.burst:
            assert taken.retry_after_s is None
        else:
            assert taken.retry_after_s == pytest.approx(bucket.wait_s(cost - tokens), abs=0.01)
        assert (taken.limit, taken.remaining) == (self.quota.burst, int(bucket.tokens))
        assert taken.reset_after_s == pytest.approx(bucket.wait_s(self.quota.burst - bucket.tokens), abs=0.01)

    @rule(name=NAMES, cost=st.integers(1, 9))
    def give_back(self, name: str, cost: int) -> None:
        cost = min(cost, self.taken[name])
        if cost:
            self.taken[name] -= cost
            bucket = self.known[name]
            bucket.tokens = min(float(self.quota.burst), bucket.at(self.now_s) + cost)
            self.run(self.store.give_back(f"{self.example} {name}", self.quota, cost))

    @rule(seconds=st.one_of(st.integers(1, 300), st.just(86_400)))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.set_clock(self.now_s)

    def answer(self, name: str, cost: int) -> Taken:
        taken: Taken = self.run(self.store.take(f"{self.example} {name}", self.quota, cost))
        return taken


class BucketsOfAClockThatIsSet(Buckets):
    """Redis's clock is that of its machine, which somebody may set."""

    @rule(seconds=st.one_of(st.integers(1, 300), st.just(86_400)))
    def set_clock_back(self, seconds: int) -> None:
        before = {name: bucket.at(self.now_s) for name, bucket in self.known.items()}
        self.now_s -= seconds
        self.set_clock(self.now_s)
        for name, bucket in self.known.items():
            empty = self.answer(name, self.quota.burst + 1)  # is never allowed
            tokens = self.quota.burst - empty.reset_after_s * self.quota.amount / self.quota.period_s
            # No caller waits for longer than a bucket needs to fill, nor gets what it has used.
            assert -0.01 < tokens < before[name] + 0.01
            # A second is 1/256 of the slowest token.
            bucket.tokens, bucket.seen_s = round(tokens * 256) / 256, self.now_s


class RefundsTwice(MemoryBuckets):
    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        await super().give_back(bucket, quota, 2 * cost)


class ForgetsFractions(MemoryBuckets):
    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        whole_amounts = Quota(1, quota.period_s // quota.amount * quota.amount, quota.burst)
        return await super().take(bucket, whole_amounts, cost)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    clock = FakeClock()
    monkeypatch.setattr(utils, "now_mono_f", lambda: clock.now_s())

    def set_to(now_s: float) -> None:
        nonlocal clock
        clock = FakeClock(now_s)

    return set_to


def in_memory(store: type[MemoryBuckets], set_clock: Callable[[float], None]) -> Callable[[], Buckets]:
    def make() -> Buckets:
        machine = Buckets(store(100), set_clock, lambda work: CountedMachine.run(machine, work))
        return machine

    return make


def test_buckets_in_memory_hold_what_time_adds(set_clock):
    check(in_memory(MemoryBuckets, set_clock), 60)


@pytest.mark.parametrize("fault", [RefundsTwice, ForgetsFractions])
def test_a_planted_fault_of_buckets_is_found(set_clock, fault):
    finds(in_memory(fault, set_clock), 60)


class RedisOfAClock:
    """A real Redis whose scripts read a clock that the test sets; and a loop to call it from."""

    def __init__(self, url: str, loop: asyncio.Runner) -> None:
        self.url, self.run = url, loop.run
        self._client = redis.Redis.from_url(url)

    def set_clock(self, now_s: float) -> None:
        self._client.pipeline().delete("now").rpush("now", repr(now_s + 1_735_660_800), 0).execute()

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def clocked_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisOfAClock]:
    register = redis.asyncio.Redis.register_script

    def with_the_clock_of_the_test(client: redis.asyncio.Redis, script: str) -> Any:
        assert 'redis.call("TIME")' in script
        return register(client, script.replace('redis.call("TIME")', 'redis.call("LRANGE", "now", 0, 1)'))

    monkeypatch.setattr(redis.asyncio.Redis, "register_script", with_the_clock_of_the_test)
    with redis_server(tmp_path) as server, asyncio.Runner() as loop:
        one = RedisOfAClock(server.url, loop)
        yield one
        one.close()


def in_redis(on: RedisOfAClock) -> Callable[[], BucketsOfAClockThatIsSet]:
    store = RedisBuckets(on.url, timeout_s=10)
    return lambda: BucketsOfAClockThatIsSet(store, on.set_clock, on.run)


def test_buckets_in_redis_give_the_same_answers(clocked_redis: RedisOfAClock):
    check(in_redis(clocked_redis), 60)


def test_it_is_found_if_redis_waits_until_its_clock_is_where_it_was(clocked_redis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buckets.RedisTake, "SCRIPTS", RedisLimitAtomicAction.SCRIPTS)
    finds(in_redis(clocked_redis), 60)


# ---- what calls are charged ---------------------------------------------------------------------------------------

GROUP = Group.TRANSCRIBE
LONG_S = 60.0
CALLS, AUDIO, LONG, AT_ONCE = Quota(8, 512, 5), Quota(1, 64, 90), Quota(1, 1024, 2), 3
LIMITS = [
    Limit(GROUP, Unit.CALLS, CALLS),
    Limit(GROUP, Unit.AUDIO_SECONDS, AUDIO),
    Limit(Group.LONG, Unit.CALLS, LONG),
    Limit(GROUP, Unit.CONCURRENT_CALLS, Quota.at_once(AT_ONCE)),
]
CALLERS = {name: Principal(f"key:{name}", f"key:{name}", key_id=name) for name in "ab"}
OUTCOMES = [None, REFUSED_FOR_LOAD := Overloaded("full"), InvalidInput("audio", "is broken")]


class Charges(CountedMachine):
    """Calls of two callers, and their recordings. The reference: a few buckets, and a list of open calls."""

    limiter_class: type[Limiter] = Limiter

    def __init__(self, set_clock: Callable[[float], None]) -> None:
        super().__init__()
        self.set_clock, self.now_s = set_clock, T0_S
        set_clock(T0_S)
        self.limiter = self.limiter_class(Quotas(LIMITS), MemoryBuckets(100), long_audio_s=LONG_S)
        self.open: dict[str, list[CallCharge]] = {name: [] for name in CALLERS}
        self.buckets = {(name, quota): Bucket(quota, T0_S) for name in CALLERS for quota in (CALLS, AUDIO, LONG)}

    @rule(name=NAMES)
    def begin_call(self, name: str) -> None:
        bucket = self.buckets[name, CALLS]
        is_admitted = bucket.at(self.now_s) >= 1 and len(self.open[name]) < AT_ONCE
        try:
            charge = self.run(self.limiter.admit(CALLERS[name], GROUP))
        except RateLimited:
            assert not is_admitted
        else:
            assert is_admitted
            bucket.tokens -= 1
            self.open[name].append(charge)

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data(), is_refused=st.booleans())
    def end_call(self, data: st.DataObject, is_refused: bool) -> None:
        name, charge = self._one(data)
        self.open[name].remove(charge)
        if is_refused:  # as the interceptor does
            self.run(charge.give_back())
            bucket = self.buckets[name, CALLS]
            bucket.tokens = min(float(CALLS.burst), bucket.at(self.now_s) + 1)
        self.limiter.done(charge)

    @precondition(lambda self: any(self.open.values()))
    @rule(
        data=st.data(),
        audio_s=st.sampled_from([0.5, 10.0, 61.0]),
        error=st.sampled_from(OUTCOMES),
    )
    def recording(self, data: st.DataObject, audio_s: float, error: Exception | None) -> None:
        name, charge = self._one(data)
        costs = {AUDIO: whole(audio_s)} | ({LONG: 1} if audio_s > LONG_S else {})
        is_allowed = all(self.buckets[name, quota].at(self.now_s) >= cost for quota, cost in costs.items())

        async def transcribe() -> bool:
            try:
                async with charge.recording(audio_s):
                    if error is not None:
                        raise error
            except RateLimited:
                return False
            except (Overloaded, InvalidInput):
                return True
            return True

        assert self.run(transcribe()) is is_allowed
        if is_allowed and error is not REFUSED_FOR_LOAD:
            for quota, cost in costs.items():
                self.buckets[name, quota].tokens -= cost

    @rule(seconds=st.integers(1, 2000))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.set_clock(self.now_s)

    @invariant()
    def buckets_are_as_full_as_they_should_be(self) -> None:
        for (name, quota), bucket in self.buckets.items():
            (limit,) = (limit for limit in LIMITS if limit.quota is quota)
            peek = self.run(self.limiter.buckets.take(f"{limit.bucket}:{CALLERS[name].id}", quota, quota.burst + 1))
            assert peek.remaining == int(bucket.at(self.now_s))

    def _one(self, data: st.DataObject) -> tuple[str, CallCharge]:
        return data.draw(st.sampled_from([(name, one) for name, calls in self.open.items() for one in calls]))


class ForgetsThatCallsEnd(Limiter):
    def done(self, charge: CallCharge) -> None:
        if charge.principal is CALLERS["a"]:
            super().done(charge)


class KeepsWhatItRefused(Limiter):
    """Charges a call that is refused because its caller has too many."""

    async def admit(self, principal: Principal, group: Group, **given: bool) -> CallCharge:
        try:
            return await super().admit(principal, group, **given)
        except RateLimited:
            await self.buckets.take(f"{LIMITS[0].bucket}:{principal.id}", CALLS, 1)
            raise


def charges(set_clock: Callable[[float], None], limiter: type[Limiter]) -> Callable[[], Charges]:
    class Planted(Charges):
        limiter_class = limiter

    return lambda: Planted(set_clock)


def test_calls_are_charged_once_and_refusals_cost_nothing(set_clock):
    check(charges(set_clock, Limiter), 60)


@pytest.mark.parametrize("fault", [ForgetsThatCallsEnd, KeepsWhatItRefused])
def test_a_planted_fault_of_charges_is_found(set_clock, fault):
    finds(charges(set_clock, fault), 60)
