from __future__ import annotations

import pytest

from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit, whole

CALLER = Principal("key:k1", "key:k1", key_id="k1")
ANONYMOUS = Principal("address:192.0.2.1", "", is_anonymous=True)


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("10/minute", Quota(10, 60, 10)),
        ("10/minute:20", Quota(10, 60, 20)),
        (" 10 / Minute : 20 ", Quota(10, 60, 20)),
        ("1/s", Quota(1, 1, 1)),
        ("5/seconds", Quota(5, 1, 5)),
        ("100/30s:5", Quota(100, 30, 5)),
        ("3/2hours", Quota(3, 7200, 3)),
        ("1000/day", Quota(1000, 86400, 1000)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_a_rate_is_read(text: str, quota: Quota | None):
    assert Quota.parse(text) == quota


NO_RATES = (
    "|10|10/|/minute|10/fortnight|0/minute|10/0s|10/minute:0|-1/minute|1.5/minute|10/minute:|10 per minute"
    "|99999999999/minute|9999999999/minute|10/minute:20:30"
)


@pytest.mark.parametrize("text", NO_RATES.split("|"))
def test_an_invalid_rate_is_an_error(text: str):
    with pytest.raises(ValueError):
        Quota.parse(text)


def test_a_share_is_at_least_one():
    assert Quota(10, 60, 20).share(50) == Quota(5, 60, 10)
    assert Quota(1, 60, 1).share(1) == Quota(1, 60, 1)
    assert Quota.at_once(3).share(50) == Quota.at_once(1)


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit(Group.BATCH, Unit.CALLS, Quota(3, 60, 3)), "3 calls in 60 s"),
        (Limit(Group.BATCH, Unit.CALLS, Quota(3, 60, 9)), "3 calls in 60 s, 9 at once"),
        (Limit(Group.STREAM, Unit.AUDIO_SECONDS, Quota(60, 1, 60)), "60 audio seconds in 1 s"),
        (Limit(Group.STREAM, Unit.CONCURRENT_CALLS, Quota.at_once(4)), "4 concurrent calls"),
    ],
)
def test_a_limit_has_a_readable_text(limit: Limit, text: str):
    assert str(limit) == text


def limit(n: int, key_id: str = "", group: Group = Group.TRANSCRIBE) -> Limit:
    return Limit(group, Unit.CALLS, Quota(n, 60, n), key_id)


def test_a_keys_own_limit_comes_before_everyones():
    quotas = Quotas([limit(10)])
    assert quotas.of(CALLER, Group.TRANSCRIBE, Unit.CALLS) == limit(10)
    quotas.apply([limit(5), limit(99, "k1")])
    assert quotas.of(CALLER, Group.TRANSCRIBE, Unit.CALLS) == limit(99, "k1")
    assert quotas.of(ANONYMOUS, Group.TRANSCRIBE, Unit.CALLS) == limit(5)
    assert quotas.of(CALLER, Group.BATCH, Unit.CALLS) is None
    assert quotas.of(CALLER, Group.TRANSCRIBE, Unit.AUDIO_SECONDS) is None


def test_a_caller_without_a_key_has_no_part_in_a_keys_limit():
    assert Quotas([limit(99, "k1")]).of(ANONYMOUS, Group.TRANSCRIBE, Unit.CALLS) is None


def test_callers_without_a_key_have_a_part_of_everyones():
    quotas = Quotas([limit(10)], anonymous_percent=30)
    assert quotas.of(ANONYMOUS, Group.TRANSCRIBE, Unit.CALLS) == limit(3)
    assert quotas.of(CALLER, Group.TRANSCRIBE, Unit.CALLS) == limit(10)


def test_everyones_limits_are_shown_in_the_order_of_the_groups():
    quotas = Quotas([limit(1, group=Group.HEALTH), limit(2, "k1"), limit(3)])
    assert quotas.for_everyone() == [limit(3), limit(1, group=Group.HEALTH)]


@pytest.mark.parametrize(("seconds", "cost"), [(0, 0), (0.2, 1), (1.0, 1), (1.0000001, 1), (1.5, 2), (60.0, 60)])
def test_audio_costs_every_second_that_has_begun(seconds: float, cost: int):
    assert whole(seconds) == cost


def test_new_settings_replace_those_before_but_no_limit_that_was_set_at_run_time():
    quotas = Quotas([limit(10), limit(20, group=Group.BATCH)])
    quotas.apply([limit(5, group=Group.BATCH)])
    quotas.set_settings([limit(30, group=Group.BATCH)], anonymous_percent=50)
    assert quotas.of(CALLER, Group.TRANSCRIBE, Unit.CALLS) is None
    assert quotas.of(CALLER, Group.BATCH, Unit.CALLS) == limit(5, group=Group.BATCH)
    assert quotas.for_everyone() == [limit(5, group=Group.BATCH)]
