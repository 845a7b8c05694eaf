from __future__ import annotations

from collections import Counter

import pytest

from typeless_grpc.jobs.turns import LEAST_TURN_S, Turns


def turns(n_slots: int, running: dict[str, int]) -> Turns:
    return Turns(n_slots, Counter(running).__getitem__)


def test_a_caller_that_is_alone_may_have_all_slots():
    assert turns(3, {}).next(["a"], 3) == (["a"], 3)


def test_the_caller_with_the_fewest_running_jobs_is_next():
    assert turns(8, {"a": 3, "b": 1, "c": 2}).next(["a", "b", "c"], 2) == (["b"], 2)


def test_of_equals_the_one_that_was_served_longest_ago_is_next():
    sharing = turns(1, {})
    chosen = [sharing.next(["a", "b", "c"], 1)[0] for _ in range(6)]
    assert chosen == [["a"], ["b"], ["c"]] * 2


def test_a_caller_that_was_served_while_no_other_waited_is_not_next():
    sharing = turns(1, {})
    for waiting in (["a"], []):
        sharing.next(waiting, 1)
    assert sharing.next(["a", "b"], 1)[0] == ["b"]


def test_a_caller_that_no_longer_waits_has_no_turn():
    sharing = turns(1, {})
    for _ in range(2):
        sharing.next(["a", "b"], 1)
    assert sharing.next(["a", "c"], 1)[0] == ["c"]
    assert sharing.next(["a", "b"], 1)[0] == ["b"]


@pytest.mark.parametrize(
    ("running", "ran_s", "is_over"),
    [
        pytest.param({"a": 3}, 0.0, True, id="all places, and the other none"),
        pytest.param({"a": 2, "b": 1}, LEAST_TURN_S, True, id="one more, and it has had its time"),
        pytest.param({"a": 2, "b": 1}, LEAST_TURN_S - 1, False, id="one more, and it has just begun"),
        pytest.param({"a": 2, "b": 2}, 1e6, False, id="as many"),
        pytest.param({"a": 1, "b": 2}, 1e6, False, id="fewer"),
    ],
)
def test_a_job_yields_if_another_caller_has_fewer_slots(running: dict[str, int], ran_s: float, is_over: bool):
    assert turns(3, running).must_yield("a", ["a", "b"], n_yielding=0, ran_s=ran_s) is is_over


def test_no_job_yields_to_its_own_caller_or_if_enough_jobs_yield():
    sharing = turns(3, {"a": 3})
    assert not sharing.must_yield("a", ["a"], n_yielding=0, ran_s=1e6)
    assert not sharing.must_yield("a", ["a", "b"], n_yielding=1, ran_s=1e6)
    assert sharing.must_yield("a", ["a", "b", "c"], n_yielding=1, ran_s=1e6)
