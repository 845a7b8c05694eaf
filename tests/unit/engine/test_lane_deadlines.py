from __future__ import annotations

import math

from tests.unit.engine.lane_bench import STARVE_AFTER_S, drain, entry, queue
from typeless_grpc.engine.interface import Lane

# ---- the wait at the measured pace ------------------------------------------------------------------------------


def test_the_measured_wait_includes_urgent_work_that_has_yet_to_arrive():
    lanes = queue(*(entry(lane=Lane.BATCH, caller=f"caller {i}") for i in range(60)))
    waits_s: list[tuple[float, float]] = []  # as expected, and what was left to wait
    for tenth in range(1, 3000):
        now_s = tenth / 10
        lanes.push(entry(queued_s=now_s))
        lanes.pop(now_s, max_batch=1)
        waits_s.append((lanes.measured_wait_s(Lane.BATCH, "caller 59", now_s), 60 * STARVE_AFTER_S - now_s))
    assert waits_s[0][0] == 0.0  # nothing was measured yet
    late = waits_s[1000:-300]
    assert all(0.8 * true_s < expected_s < 1.25 * true_s for expected_s, true_s in late)
    assert lanes.cost_ahead_s(Lane.BATCH, "caller 59") < 0.3 * late[0][0]


def test_a_lane_that_was_empty_is_measured_anew():
    lanes = queue(*(entry(lane=Lane.BATCH) for _ in range(40)))
    for i in range(30):
        lanes.pop(5.0 * i, max_batch=1)
    assert lanes.measured_wait_s(Lane.BATCH, "a", 150.0) > 0
    drain(lanes, 151.0)
    lanes.push(entry(lane=Lane.BATCH, queued_s=152.0))
    assert lanes.measured_wait_s(Lane.BATCH, "a", 153.0) == 0.0


# ---- promotion ------------------------------------------------------------------------------------------------------


def test_promoted_work_goes_before_all_but_live_speech():
    lanes = queue(
        entry("unary", caller="b"),
        entry("batch", Lane.BATCH, promote_s=3.0),
        entry("job", Lane.JOBS, caller="c"),
        entry("live", Lane.LIVE_INTERIM),
        starve_after_s=math.inf,
    )
    assert [one.work for one in drain(lanes, 2.9)] == ["live", "unary", "batch", "job"]
    lanes = queue(
        entry("unary", caller="b"),
        entry("batch", Lane.BATCH, promote_s=3.0),
        entry("live", Lane.LIVE_INTERIM),
        starve_after_s=math.inf,
    )
    assert [one.work for one in drain(lanes, 3.0)] == ["live", "batch", "unary"]


def test_what_a_caller_has_queued_before_goes_before_its_promoted_work():
    lanes = queue(
        entry("unary", caller="b"),
        entry("first", Lane.BATCH),
        entry("second", Lane.BATCH, promote_s=3.0),
        starve_after_s=math.inf,
    )
    assert [one.work for one in drain(lanes, 3.0)] == ["first", "second", "unary"]


def test_promoted_work_does_not_yield_to_live_speech_that_may_arrive():
    lanes = queue(entry(lane=Lane.BATCH, promote_s=3.0), starve_after_s=math.inf)
    assert not lanes.has_next(2.9, is_yielding=True)
    assert lanes.has_next(3.0, is_yielding=True)


def test_work_that_was_removed_is_not_promoted():
    timed = entry("batch", Lane.BATCH, promote_s=3.0)
    lanes = queue(entry("unary"), timed, starve_after_s=math.inf)
    assert lanes.remove(timed)
    assert [one.work for one in drain(lanes, 4.0)] == ["unary"]
