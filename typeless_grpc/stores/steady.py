"""Time that passes evenly, beside a clock that may be set.

What a job leaves behind expires by the database's clock, the only one that all servers share. Clocks are set: by hand,
by a time server after a long while without one, or with the machine that a database moves to. One that leaps a day
ahead would end everything at once that has a day to live.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# How much faster or slower time may pass here than on this machine's own clock, until it is that of the database again.
SLEW = 0.1
STEP_S = 60.0
LOOK_S = 1.0


def since_boot_s() -> float:
    """Seconds that nobody sets, those that the machine slept included where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """Follows another clock without its leaps. Threads share it."""

    def __init__(self, clock: Callable[[], float] = since_boot_s) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._s: float | None = None
        self._seen_s = clock()
        self._is_apart = False

    @property
    def is_known(self) -> bool:
        """Whether `now_s` can be asked."""
        return self._s is not None

    @property
    def is_due(self) -> bool:
        """Whether the other clock is to be looked at again."""
        return self._s is None or self._clock() - self._seen_s >= LOOK_S

    def follow(self, told_s: float) -> None:
        """The other clock says so now. The first time it is believed."""
        with self._lock:
            now_s = self._clock()
            passed_s, self._seen_s = now_s - self._seen_s, now_s
            if self._s is None:
                self._s = told_s
                return
            apart_s = told_s - (self._s + passed_s)
            self._s += passed_s + max(-SLEW * passed_s, min(SLEW * passed_s, apart_s))
            if (abs(apart_s) > STEP_S) is not self._is_apart:
                self._is_apart = not self._is_apart
                if self._is_apart:
                    log.warning("the clock of the database was set; expiry follows slowly", apart_s=round(apart_s))

    def now_s(self) -> float:
        """Unix time in seconds, once `follow` was told."""
        with self._lock:
            assert self._s is not None
            return self._s + self._clock() - self._seen_s
