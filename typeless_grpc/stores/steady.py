"""A clock that follows another one without its steps.

Jobs and uploads expire by the database's clock, the only one that all servers share. This clock may step: by hand, by a
time server after a long outage, or when the database moves to another machine. A step of a day ahead would at once
expire everything that has a day to live.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# How much faster or slower than this machine's own clock it may run, to approach the database's clock.
SLEW = 0.1
STEP_S = 60.0
READ_S = 1.0


def since_boot_s() -> float:
    """Return a clock in seconds that is never set; it includes sleep of the machine if the system counts it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """Follows another clock without its steps. Threads may share it."""

    def __init__(self, clock: Callable[[], float] = since_boot_s) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._s: float | None = None
        self._seen_s = clock()
        self._is_apart = False

    @property
    def is_known(self) -> bool:
        """Whether `now_s` may be called."""
        return self._s is not None

    @property
    def is_due(self) -> bool:
        """Whether the other clock should be read again."""
        return self._s is None or self._clock() - self._seen_s >= READ_S

    def follow(self, other_s: float) -> None:
        """Note the time of the other clock. The first time is taken as it is."""
        with self._lock:
            now_s = self._clock()
            passed_s, self._seen_s = now_s - self._seen_s, now_s
            if self._s is None:
                self._s = other_s
                return
            apart_s = other_s - (self._s + passed_s)
            self._s += passed_s + max(-SLEW * passed_s, min(SLEW * passed_s, apart_s))
            if (abs(apart_s) > STEP_S) is not self._is_apart:
                self._is_apart = not self._is_apart
                if self._is_apart:
                    log.warning("the clock of the database was set; expiry follows slowly", apart_s=round(apart_s))

    def now_s(self) -> float:
        """Return Unix time in seconds, after the first `follow`."""
        with self._lock:
            assert self._s is not None
            return self._s + self._clock() - self._seen_s
