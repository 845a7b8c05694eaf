"""Whose jobs run: which callers get the next free place, and which job makes way for another caller's.

A free place goes to the caller with the fewest running jobs; of equals, to the one that was served longest ago. A job
may run for hours, so places must not only be shared out as they become free. Between two of its chunks a job makes way
where no place is free and another caller waits who has fewer: at once where its own caller has two more, else once it
has had its time. It goes on with the chunk that follows when its caller is next. Alone, a caller has all places.

No clock, no I/O: whoever drives the worker knows who waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

# How long a job runs at the least before it makes way for a caller that has one less, and how many times as long as it
# took to find the place where it went on: what that costs is little beside what gets done.
LEAST_TURN_S = 10.0
TIMES_THE_START = 3.0


class Turns:
    """The places of one process. Threads may share it where they may share n_running."""

    def __init__(self, n_places: int, n_running: Callable[[str], int]) -> None:
        """n_running: how many jobs of a caller run here."""
        self._n_places, self._n_running = n_places, n_running
        self._served: dict[str, int] = {}
        self._count = itertools.count()

    def next(self, waiting: Collection[str], n_free: int) -> tuple[list[str], int]:
        """Of callers that wait, those that are next, and how many jobs each may have then. n_free: places, above 0."""
        running = {caller: self._n_running(caller) for caller in waiting}
        least = min(running.values(), default=0)
        equals = [caller for caller in waiting if running[caller] == least]
        chosen = sorted(equals, key=lambda caller: self._served.get(caller, -1))[:n_free]
        if waiting:  # one that waits no more has no turn to wait for
            self._served = {caller: turn for caller, turn in self._served.items() if caller in running}
        self._served |= {caller: next(self._count) for caller in chosen}
        return chosen, least + 1 if len(waiting) > 1 else self._n_places

    def must_make_way(self, caller: str, waiting: Collection[str], *, n_making_way: int, ran_s: float) -> bool:
        """Whether a job of a caller is to give up its place; no place is free.

        n_making_way: jobs that do already. ran_s: how long this one has been at work here.
        """
        others = [self._n_running(other) for other in waiting if other != caller]
        if n_making_way >= len(others):
            return False
        n_more = self._n_running(caller) - min(others)
        return n_more >= 2 or (n_more == 1 and ran_s >= LEAST_TURN_S)
