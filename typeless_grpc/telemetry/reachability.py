"""Whether something outside answers: a gauge, and one log line each time that changes."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Gauge

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


class Reachability:
    """One thing that may be away, taken to answer until it does not."""

    def __init__(self, what: str, gauge: Gauge) -> None:
        """what: for people, "shared rate limits"."""
        self._what = what
        self._gauge = gauge
        self._answers = True

    @property
    def answers(self) -> bool:
        """Whether it did when it was last asked."""
        return self._answers

    def report(self, answers: bool) -> None:
        """It was asked, and did or did not answer."""
        if answers == self._answers:
            return
        self._answers = answers
        self._gauge.set(int(answers))
        if answers:
            log.warning("answers again", what=self._what)
        else:
            log.warning("does not answer; asking on", what=self._what)


class Freshness:
    """How long ago something was last read, for what goes on being used as it was read then.

    Each `stale_s` without an answer there is an error in the log; the gauge has the Unix time of the last answer.
    """

    def __init__(self, what: str, gauge: Gauge, stale_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """what: the consequence, for people: "keys that were revoked since are still good here"."""
        self._what, self._gauge, self._stale_s, self._clock = what, gauge, stale_s, clock
        self._read_s = self._loud_s = clock()

    def report(self, answers: bool) -> None:
        """It was asked, and did or did not answer."""
        now_s = self._clock()
        if answers:
            self._read_s = self._loud_s = now_s
            self._gauge.set_to_current_time()
        elif now_s - self._loud_s >= self._stale_s:
            self._loud_s = now_s
            log.error(self._what, seconds_since_read=round(now_s - self._read_s))
