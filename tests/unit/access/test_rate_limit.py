from __future__ import annotations

import pytest

from typeless_grpc.access import rate_limit
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit
from typeless_grpc.access.rate_limit import Limiter, NoCharge
from typeless_grpc.engine.shares import share_is_used_up
from typeless_grpc.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    RateLimited,
    SourceUnavailable,
    TypelessError,
)
from typeless_grpc.stores.buckets import MemoryBuckets

A = Principal("key:a", "key:a", key_id="a")
B = Principal("key:b", "key:b", key_id="b")


def limiter(*limits: Limit, long_audio_s: float = 300) -> Limiter:
    return Limiter(Quotas(limits), MemoryBuckets(100), long_audio_s=long_audio_s)


def calls(n: int, group: Group = Group.STREAM) -> Limit:
    return Limit(group, Unit.CALLS, Quota(n, 3600, n))


def seconds(n: int, group: Group = Group.STREAM) -> Limit:
    return Limit(group, Unit.AUDIO_SECONDS, Quota(n, 3600, n))


async def test_streamed_audio_costs_whole_seconds_however_it_is_cut():
    limited = limiter(seconds(3))
    charge = await limited.admit(A, Group.STREAM)
    for _ in range(39):
        await charge.audio(0.1)
    with pytest.raises(RateLimited, match="audio seconds"):
        await charge.audio(0.11)


async def test_audio_that_came_before_there_was_a_limit_is_not_charged_later():
    limited = limiter()
    charge = await limited.admit(A, Group.STREAM)
    await charge.audio(3600.0)
    limited.quotas.apply([seconds(3)])
    await charge.audio(3.0)
    with pytest.raises(RateLimited, match="audio seconds"):
        await charge.audio(1.0)


def transcribing(n_calls: int = 9, n_long: int = 1, audio_s: int = 20) -> Limiter:
    """Longer than 5 s is long."""
    limits = (calls(n_calls, Group.TRANSCRIBE), calls(n_long, Group.LONG), seconds(audio_s, Group.TRANSCRIBE))
    return limiter(*limits, long_audio_s=5)


async def test_a_long_recording_takes_from_both_groups():
    charge = await transcribing().admit(A, Group.TRANSCRIBE)
    for audio_s in (5.0, 15.0):
        async with charge.recording(audio_s):
            pass
    with pytest.raises(RateLimited, match="group long"):
        async with charge.recording(5.1):
            pass


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("Full."),
        SourceUnavailable("Away.", reason="STORE_UNAVAILABLE"),
        share_is_used_up("key:1", "calls at once", 1.0),
    ],
)
async def test_a_call_that_is_refused_for_load_costs_nothing(error: TypelessError):
    limited = transcribing()
    for _ in range(3):
        charge = await limited.admit(A, Group.TRANSCRIBE)
        with pytest.raises(type(error)):
            async with charge.recording(10.0):
                raise error
        await charge.give_back()
        await charge.give_back()
    charge = await limited.admit(A, Group.TRANSCRIBE)
    assert charge.state is not None
    assert charge.state.remaining == 8
    async with charge.recording(20.0):
        pass


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("audio", "is odd"),
        DeadlineExceeded("Too late."),
        SourceUnavailable("Away.", reason="AUDIO_UNREACHABLE"),
    ],
    ids=["a mistake", "a deadline", "audio that is not there"],
)
async def test_a_callers_mistake_is_charged(error: TypelessError):
    charge = await transcribing().admit(A, Group.TRANSCRIBE)
    with pytest.raises(type(error)):
        async with charge.recording(10.0):
            raise error
    with pytest.raises(RateLimited, match="group long"):
        async with charge.recording(10.0):
            pass
    assert not rate_limit.is_refused_for_load(error)


async def test_one_recording_of_a_batch_is_given_back_and_the_others_are_not():
    charge = await transcribing(n_long=2).admit(A, Group.TRANSCRIBE)
    async with charge.recording(6.0):
        with pytest.raises(Overloaded):
            async with charge.recording(14.0):
                raise Overloaded("Full.")
    async with charge.recording(14.0):
        pass
    with pytest.raises(RateLimited):
        async with charge.recording(1.0):
            pass


async def test_a_recording_that_is_refused_for_its_length_leaves_the_long_ones_alone():
    charge = await transcribing(audio_s=10).admit(A, Group.TRANSCRIBE)
    with pytest.raises(RateLimited, match="audio seconds"):
        async with charge.recording(11.0):
            pass
    async with charge.recording(10.0):
        pass


async def test_a_cost_above_the_quota_is_refused_without_a_retry_delay():
    charge = await limiter(seconds(10, Group.TRANSCRIBE)).admit(A, Group.TRANSCRIBE)
    with pytest.raises(RateLimited) as caught:
        async with charge.recording(11):
            pass
    assert not caught.value.retryable


def at_once(n: int) -> Limit:
    return Limit(Group.STREAM, Unit.CONCURRENT_CALLS, Quota.at_once(n))


async def test_open_calls_are_counted_until_they_are_done():
    limited = limiter(at_once(2))
    charges = [await limited.admit(A, Group.STREAM) for _ in range(2)]
    with pytest.raises(RateLimited):
        await limited.admit(A, Group.STREAM)
    await limited.admit(B, Group.STREAM)
    await limited.admit(A, Group.JOBS)
    limited.done(charges[0])
    await limited.admit(A, Group.STREAM)


async def test_uncounted_calls_are_admitted_beside_counted_ones():
    limited = limiter(at_once(1))
    open_call = await limited.admit(A, Group.STREAM)
    limited.done(await limited.admit(A, Group.STREAM, is_counted=False))
    with pytest.raises(RateLimited):
        await limited.admit(A, Group.STREAM)
    limited.done(open_call)
    await limited.admit(A, Group.STREAM)


async def test_a_call_refused_for_its_rate_does_not_stay_open():
    limited = limiter(calls(1), at_once(2))
    await limited.admit(A, Group.STREAM)
    for _ in range(5):
        with pytest.raises(RateLimited, match="1 calls in 3600 s"):
            await limited.admit(A, Group.STREAM)


async def test_a_call_refused_for_open_calls_keeps_its_quota():
    limited = limiter(calls(2), at_once(1))
    open_call = await limited.admit(A, Group.STREAM)
    for _ in range(5):
        with pytest.raises(RateLimited, match="1 concurrent calls") as caught:
            await limited.admit(A, Group.STREAM)
        assert caught.value.retry_after_s == 1.0
    limited.done(open_call)
    await limited.admit(A, Group.STREAM)
    with pytest.raises(RateLimited, match="2 calls in 3600 s"):
        await limited.admit(A, Group.STREAM)


async def test_a_changed_quota_holds_from_the_next_call_on():
    limited = limiter(calls(1))
    await limited.admit(A, Group.STREAM)
    limited.quotas.apply([calls(2)])
    await limited.admit(A, Group.STREAM)


async def test_outside_of_a_call_everything_is_free():
    charge = rate_limit.current()
    assert isinstance(charge, NoCharge)
    async with charge.recording(1e9):
        pass
    await charge.audio(1e9)
