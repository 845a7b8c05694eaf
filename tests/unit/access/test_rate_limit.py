from __future__ import annotations

import pytest

from typeless_grpc.access import rate_limit
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit
from typeless_grpc.access.rate_limit import Limiter, NoCharge
from typeless_grpc.errors import RateLimited
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


async def test_a_long_recording_takes_from_both_groups_and_gives_back_to_both():
    limited = limiter(calls(9, Group.TRANSCRIBE), calls(1, Group.LONG), seconds(20, Group.TRANSCRIBE), long_audio_s=5)
    for _ in range(3):
        charge = await limited.admit(A, Group.TRANSCRIBE)
        await charge.recording(10.0)
        await charge.give_back()
        await charge.give_back()
    charge = await limited.admit(A, Group.TRANSCRIBE)
    assert charge.state is not None
    assert charge.state.remaining == 8
    await charge.recording(5.0)
    await charge.recording(15.0)
    with pytest.raises(RateLimited, match="group long"):
        await charge.recording(5.1)


async def test_what_the_quota_never_holds_is_refused_without_a_time():
    charge = await limiter(seconds(10, Group.TRANSCRIBE)).admit(A, Group.TRANSCRIBE)
    with pytest.raises(RateLimited) as caught:
        await charge.recording(11)
    assert not caught.value.retryable


async def test_open_calls_are_counted_until_they_are_done():
    limited = limiter(Limit(Group.STREAM, Unit.CONCURRENT_CALLS, Quota.at_once(2)))
    for _ in range(2):
        await limited.admit(A, Group.STREAM)
    with pytest.raises(RateLimited):
        await limited.admit(A, Group.STREAM)
    await limited.admit(B, Group.STREAM)
    await limited.admit(A, Group.JOBS)
    limited.done(A, Group.STREAM)
    await limited.admit(A, Group.STREAM)


async def test_a_call_refused_for_its_rate_does_not_stay_open():
    limited = limiter(calls(1), Limit(Group.STREAM, Unit.CONCURRENT_CALLS, Quota.at_once(2)))
    await limited.admit(A, Group.STREAM)
    for _ in range(5):
        with pytest.raises(RateLimited, match="1 calls in 3600 s"):
            await limited.admit(A, Group.STREAM)


async def test_a_changed_quota_holds_from_the_next_call_on():
    limited = limiter(calls(1))
    await limited.admit(A, Group.STREAM)
    limited.quotas.apply([calls(2)])
    await limited.admit(A, Group.STREAM)


async def test_outside_of_a_call_everything_is_free():
    charge = rate_limit.current()
    assert isinstance(charge, NoCharge)
    await charge.recording(1e9)
    await charge.audio(1e9)
