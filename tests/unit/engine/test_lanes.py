from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine.lane_bench import STARVE_AFTER_S, drain, entry, queue
from typeless_grpc.engine import lanes as lanes_module
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.lanes import Entry, LaneQueue

# ---- order ------------------------------------------------------------------------------------------------------


@given(st.permutations(list(Lane)))
def test_the_more_urgent_lane_is_served_first(order: list[Lane]):
    lanes = queue(*(entry(lane=lane) for lane in order))
    assert [one.lane for one in drain(lanes)] == list(Lane)


def test_work_of_one_caller_is_served_in_its_order():
    lanes = queue(*(entry(str(number)) for number in range(5)))
    assert [one.work for one in drain(lanes)] == ["0", "1", "2", "3", "4"]


def test_an_empty_queue_gives_an_empty_batch():
    lanes = queue()
    assert lanes.pop(0.0, max_batch=8) == []
    assert lanes.next_batch_size(0.0) == 0


def test_a_starving_lane_gets_one_batch_before_all_others():
    lanes = queue(entry("job", Lane.JOBS), entry("job", Lane.JOBS))
    for number in range(4):
        lanes.push(entry(f"final {number}", Lane.LIVE_FINAL))
    moments = [0.0, STARVE_AFTER_S - 0.1, STARVE_AFTER_S, STARVE_AFTER_S + 0.1, 2 * STARVE_AFTER_S, 2 * STARVE_AFTER_S]
    served = [one.work for now_s in moments for one in lanes.pop(now_s, max_batch=1)]
    assert served == ["final 0", "final 1", "job", "final 2", "job", "final 3"]


def test_the_lane_that_starves_longer_goes_first():
    lanes = queue(entry(lane=Lane.BATCH, queued_s=1.0), entry(lane=Lane.JOBS, queued_s=0.0))
    lanes.push(entry(lane=Lane.LIVE_FINAL, queued_s=100.0))
    assert [one.lane for one in drain(lanes, now_s=100.0)] == [Lane.JOBS, Lane.BATCH, Lane.LIVE_FINAL]


def test_an_empty_lane_does_not_starve():
    lanes = queue(entry("old", Lane.JOBS))
    assert lanes.pop(0.0, max_batch=1)
    lanes.push(entry("new", Lane.JOBS, queued_s=1000.0))
    lanes.push(entry("final", Lane.LIVE_FINAL, queued_s=1000.0))
    assert [one.work for one in lanes.pop(1000.0, max_batch=1)] == ["final"]


@pytest.mark.parametrize("starved", [lane for lane in Lane if lane is not Lane.LIVE_FINAL], ids=lambda lane: lane.name)
def test_no_lane_starves_under_a_flood_of_more_urgent_work(starved: Lane):
    lanes = queue(entry("less urgent", starved))
    for now_s in range(100):
        lanes.push(entry("urgent", Lane.LIVE_FINAL, queued_s=now_s))
        if any(one.work == "less urgent" for one in lanes.pop(now_s, max_batch=1)):
            assert now_s == STARVE_AFTER_S
            return
    pytest.fail("it starved")


# ---- batches ----------------------------------------------------------------------------------------------------


def test_only_equal_keys_share_a_batch():
    lanes = queue(entry("1", key="15 s"), entry("2", key="30 s"), entry("3", key="15 s"))
    assert [one.work for one in lanes.pop(0.0, max_batch=8)] == ["1", "3"]
    assert [one.work for one in lanes.pop(0.0, max_batch=8)] == ["2"]


def test_a_batch_is_never_larger_than_allowed():
    lanes = queue(*(entry() for _ in range(10)))
    assert [len(lanes.pop(0.0, max_batch=4)) for _ in range(4)] == [4, 4, 2, 0]


def test_less_urgent_work_does_not_join_a_batch():
    lanes = queue(entry("job", Lane.JOBS), entry("unary", Lane.UNARY), entry("final", Lane.LIVE_FINAL))
    assert [one.work for one in lanes.pop(0.0, max_batch=8)] == ["final"]
    assert [one.work for one in lanes.pop(0.0, max_batch=8)] == ["unary"]


def test_more_urgent_work_joins_the_batch_of_a_starving_lane():
    lanes = queue(entry("job", Lane.JOBS), entry("job 2", Lane.JOBS))
    lanes.push(entry("final", Lane.LIVE_FINAL, queued_s=STARVE_AFTER_S))
    lanes.push(entry("batch", Lane.BATCH, queued_s=STARVE_AFTER_S, key="other"))
    assert [one.work for one in lanes.pop(STARVE_AFTER_S, max_batch=2)] == ["job", "final"]


def test_callers_take_turns_within_a_batch():
    lanes = queue(*(entry(f"a{number}", caller="a") for number in range(6)), entry("b", caller="b"))
    assert {one.work for one in lanes.pop(0.0, max_batch=2)} == {"a0", "b"}


def test_the_next_batch_size_is_that_of_the_next_pop():
    lanes = queue(
        entry(lane=Lane.UNARY), entry(lane=Lane.UNARY, key="other"), entry(lane=Lane.UNARY), entry(lane=Lane.JOBS)
    )
    assert lanes.next_batch_size(0.0) == 2
    assert len(lanes.pop(0.0, max_batch=8)) == 2


# ---- fairness ---------------------------------------------------------------------------------------------------


def test_one_caller_with_a_hundred_files_does_not_delay_anothers_one():
    lanes = queue(*(entry(caller="many") for _ in range(100)))
    for _ in range(10):
        lanes.pop(0.0, max_batch=1)
    lanes.push(entry("the one", caller="one"))
    assert [one.work for one in lanes.pop(0.0, max_batch=1)] == ["the one"]


def test_callers_share_by_cost_and_not_by_count():
    lanes = queue(*(entry(caller="long", cost_s=4.0) for _ in range(40)))
    for _ in range(160):
        lanes.push(entry(caller="short", cost_s=1.0))
    seconds = Counter[str]()
    for one in drain(lanes)[:100]:
        seconds[one.caller] += round(one.cost_s)
    assert abs(seconds["long"] - seconds["short"]) <= 4


def test_an_idle_caller_gains_nothing():
    lanes = queue(*(entry(caller="steady") for _ in range(200)), entry(caller="away"))
    for _ in range(100):
        lanes.pop(0.0, max_batch=1)
    for _ in range(50):
        lanes.push(entry(caller="away"))
    served = Counter(one.caller for one in drain(lanes)[:40])
    assert abs(served["steady"] - served["away"]) <= 1


def test_submitting_one_at_a_time_is_no_way_past_the_others():
    lanes = queue(*(entry(caller="many") for _ in range(50)))
    lanes.push(entry(caller="polite"))
    served = Counter[str]()
    for _ in range(40):
        (one,) = lanes.pop(0.0, max_batch=1)
        served[one.caller] += 1
        if one.caller == "polite":
            lanes.push(entry(caller="polite"))
    assert abs(served["many"] - served["polite"]) <= 2


def test_a_caller_that_fills_batches_does_not_set_the_time_of_new_callers():
    lanes = queue(entry(caller="slow"), *(entry(caller="flood") for _ in range(200)))
    for _ in range(30):
        lanes.push(entry(caller="slow", key="other"))
    assert Counter(one.caller for one in lanes.pop(0.0, max_batch=8)) == {"slow": 1, "flood": 7}
    lanes.push(entry("new", caller="new", key="other"))
    next_two = lanes.pop(0.0, max_batch=1) + lanes.pop(0.0, max_batch=1)
    assert "new" in [one.work for one in next_two]


def test_filling_batches_counts_against_a_caller_up_to_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes_module, "MAX_LEAD_S", 10.0)
    lanes = queue(*(entry(caller="flood") for _ in range(1000)), *(entry(caller="slow") for _ in range(20)))
    for _ in range(10):  # the flood fills each batch that the slow one begins
        lanes.pop(0.0, max_batch=50)
    for _ in range(100):
        lanes.push(entry(caller="newcomer", key="other"))
    order = [lanes.pop(0.0, max_batch=1)[0].caller for _ in range(60)]
    assert "flood" in order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 5.0)), min_size=1, max_size=60))
def test_waiting_callers_are_never_further_apart_than_their_largest_work(files: list[tuple[str, float]]):
    lanes = queue(*(entry(caller=caller, cost_s=cost_s) for caller, cost_s in files))
    left = Counter(caller for caller, _ in files)
    given_s = dict.fromkeys(left, 0.0)
    largest_s = max(cost_s for _, cost_s in files)
    for one in drain(lanes):
        given_s[one.caller] += one.cost_s
        left[one.caller] -= 1
        served_s = [given_s[caller] for caller in left if left[caller]]
        if len(served_s) > 1:
            assert max(served_s) - min(served_s) <= largest_s + 1e-6


def test_the_cost_ahead_is_that_of_what_is_served_before():
    lanes = queue(*(entry(caller="many", lane=Lane.UNARY) for _ in range(100)), entry(lane=Lane.LIVE_FINAL, cost_s=3.0))
    assert lanes.cost_ahead_s(Lane.LIVE_FINAL) == 3.0
    assert lanes.cost_ahead_s(Lane.UNARY) == 103.0
    assert lanes.cost_ahead_s(Lane.JOBS) == 103.0
    assert lanes.cost_ahead_s(Lane.UNARY, "many") == 103.0
    assert lanes.cost_ahead_s(Lane.UNARY, "another") <= 4.0  # its own turn comes after one of the hundred


# ---- bookkeeping ------------------------------------------------------------------------------------------------


def test_removed_work_is_not_served():
    removed, stays = entry("removed"), entry("stays")
    lanes = queue(removed, stays)
    assert lanes.remove(removed)
    assert not lanes.remove(removed)
    assert drain(lanes) == [stays]
    assert not lanes.remove(stays)


def test_equal_entries_are_distinct():
    first, second = entry("same"), entry("same")
    lanes = queue(first, second)
    assert lanes.remove(second)
    (served,) = drain(lanes)
    assert served is first


def test_entries_queued_before_a_moment_are_listed_by_lane():
    early, late = entry("early", Lane.LIVE_INTERIM, queued_s=1.0), entry("late", Lane.LIVE_INTERIM, queued_s=3.0)
    lanes = queue(early, late, entry("other", Lane.UNARY, queued_s=0.0))
    assert lanes.queued_before(Lane.LIVE_INTERIM, 2.0) == [early]


STEPS = st.one_of(
    st.tuples(
        st.just("push"),
        st.sampled_from(list(Lane)),
        st.sampled_from("abcd"),
        st.sampled_from("xyz"),
        st.floats(0.0, 3.0),
    ),
    st.tuples(st.just("remove"), st.integers(0, 100)),
    st.tuples(st.just("pop"), st.integers(1, 5), st.floats(0.0, 10.0)),
)


@given(st.lists(STEPS, max_size=80))
def test_any_sequence_serves_each_entry_exactly_once(steps: list[tuple]):
    lanes = queue()
    pushed: list[Entry[str]] = []
    waiting: list[Entry[str]] = []
    served: list[Entry[str]] = []
    removed: list[Entry[str]] = []
    now_s = 0.0
    for what, *how in steps:
        if what == "push":
            lane, caller, key, cost_s = how
            one = entry(str(len(pushed)), lane, caller, key=key, cost_s=cost_s, queued_s=now_s)
            lanes.push(one)
            pushed.append(one)
            waiting.append(one)
        elif what == "remove" and pushed:
            one = pushed[how[0] % len(pushed)]
            was_waiting = one in waiting
            assert lanes.remove(one) is was_waiting
            if was_waiting:
                waiting.remove(one)
                removed.append(one)
        elif what == "pop":
            max_batch, passed_s = how
            now_s += passed_s
            could_be = lanes.next_batch_size(now_s)
            batch = lanes.pop(now_s, max_batch=max_batch)
            assert len(batch) == min(could_be, max_batch)
            assert bool(batch) == bool(waiting)
            assert len({one.key for one in batch}) <= 1
            assert all(one.lane <= batch[0].lane for one in batch)
            for one in batch:
                waiting.remove(one)
            served += batch
        assert lanes.n_queued() == len(waiting)
        assert lanes.cost_ahead_s(Lane.JOBS) == pytest.approx(sum(one.cost_s for one in waiting))
    served += drain(lanes, now_s)
    assert sorted(one.work for one in served + removed) == sorted(one.work for one in pushed)
    assert lanes.n_queued() == 0
    assert [lanes.n_callers(lane) for lane in Lane] == [0] * len(Lane)


def test_idle_callers_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes_module, "MAX_IDLE_CALLERS", 10)
    lanes = queue(*(entry(caller="steady", key="never alike", cost_s=1e-6) for _ in range(3)))
    most = 0
    for number in range(1000):
        one = entry(caller=f"visitor {number}", cost_s=5.0)
        lanes.push(one)
        if number % 3:
            while one not in lanes.pop(0.0, max_batch=1):
                pass
        else:
            lanes.remove(one)
        lanes.push(entry(caller="steady", key="never alike", cost_s=1e-6))
        most = max(most, lanes.n_callers(Lane.UNARY) - lanes.n_queued())
    assert most <= 10
    assert lanes.n_queued() > 0


def test_a_batch_is_bounded_by_its_cost():
    lanes: LaneQueue[str] = LaneQueue(starve_after_s=100.0)
    for name in "abcd":
        lanes.push(Entry(name, "key", 1.0, Lane.UNARY, "caller", 0.0))
    assert [entry.work for entry in lanes.pop(0.0, max_batch=8, max_cost_s=2.5)] == ["a", "b"]
    assert [entry.work for entry in lanes.pop(0.0, max_batch=8, max_cost_s=0.5)] == ["c"]
    assert [entry.work for entry in lanes.pop(0.0, max_batch=8)] == ["d"]
