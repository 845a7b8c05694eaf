"""Which caller gets the next free slot, and which job yields its slot to another caller's.

A free slot goes to the caller with the fewest running jobs; of equals, to the one that was served longest ago. A job
may run for hours, so it is not enough to share slots as they become free. Between two of its chunks a job yields if no
slot is free and another caller that waits has fewer running jobs: at once if its own caller has two more, else once it
has worked for its turn. It continues with the next chunk when its caller is next. A caller that is alone has all slots.

No clock, no I/O: the worker's runner knows which callers wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

# A job works at least so long before it yields to a caller that has one less, and at least so many times as long as the
# run took to find the audio of its first chunk: what that costs is then little of the whole.
LEAST_TURN_S = 10.0
TIMES_THE_START = 3.0


class Turns:
    """Shares the slots of one process between callers. It is as thread-safe as n_running."""

    def __init__(self, n_slots: int, n_running: Callable[[str], int]) -> None:
        """n_running: returns how many jobs of a caller run here."""
        self._n_slots, self._n_running = n_slots, n_running
        self._served: dict[str, int] = {}
        self._count = itertools.count()

    def next(self, waiting: Collection[str], n_free: int) -> tuple[list[str], int]:
        """Return the waiting callers that are next, and how many jobs each may then have.

        n_free: free slots, above 0.
        """
        running = {caller: self._n_running(caller) for caller in waiting}
        least = min(running.values(), default=0)
        equals = [caller for caller in waiting if running[caller] == least]
        chosen = sorted(equals, key=lambda caller: self._served.get(caller, -1))[:n_free]
        if waiting:  # forget callers that no longer wait
            self._served = {caller: turn for caller, turn in self._served.items() if caller in running}
        self._served |= {caller: next(self._count) for caller in chosen}
        return chosen, least + 1 if len(waiting) > 1 else self._n_slots

    def must_yield(self, caller: str, waiting: Collection[str], *, n_yielding: int, ran_s: float) -> bool:
        """Whether a job of a caller must yield its slot; call it if no slot is free.

        n_yielding: jobs that already yield. ran_s: seconds for which this job has worked here.
        """
        others = [self._n_running(other) for other in waiting if other != caller]
        if n_yielding >= len(others):
            return False
        n_more = self._n_running(caller) - min(others)
        return n_more >= 2 or (n_more == 1 and ran_s >= LEAST_TURN_S)
