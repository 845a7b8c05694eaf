"""Makes entries and queues for the tests of lanes."""

from __future__ import annotations

import math

from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.lanes import Entry, LaneQueue

STARVE_AFTER_S = 5.0


def entry(
    work: str = "",
    lane: Lane = Lane.UNARY,
    caller: str = "a",
    *,
    key: object = "k",
    cost_s: float = 1.0,
    queued_s: float = 0.0,
    promote_s: float = math.inf,
) -> Entry[str]:
    return Entry(work, key, cost_s, lane, caller, queued_s, promote_s)


def queue(*entries: Entry[str], starve_after_s: float = STARVE_AFTER_S) -> LaneQueue[str]:
    lanes: LaneQueue[str] = LaneQueue(starve_after_s=starve_after_s)
    for one in entries:
        lanes.push(one)
    return lanes


def drain(lanes: LaneQueue[str], now_s: float = 0.0, max_batch: int = 1) -> list[Entry[str]]:
    """Serve all entries at one moment, and return them in order."""
    served: list[Entry[str]] = []
    while batch := lanes.pop(now_s, max_batch=max_batch):
        served += batch
    return served
