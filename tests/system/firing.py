"""Whether alerts fire with their fault and clear after it."""

from __future__ import annotations

import contextlib

from tests.system.faults import Fault, alerts_of
from tests.system.stack import Stack, wait_until

FIRES_WITHIN_S = 200.0
CLEARS_WITHIN_S = 300.0


def check_alerts(stack: Stack, fault: Fault) -> None:
    """Make a fault, and wait for its alerts; mend it, and wait until they clear."""
    prometheus, names = stack.prometheus, alerts_of(fault)
    wait_until(lambda: not prometheus.firing() & names, CLEARS_WITHIN_S, f"{names} do not fire before")
    seen: set[str] = set()

    def all_fire() -> bool:
        seen.update(prometheus.firing())
        return seen >= names

    with fault(stack):
        with contextlib.suppress(AssertionError):
            wait_until(all_fire, FIRES_WITHIN_S, "")
        assert names - seen == set()
    wait_until(lambda: not prometheus.firing() & names, CLEARS_WITHIN_S, f"{names} clear")
