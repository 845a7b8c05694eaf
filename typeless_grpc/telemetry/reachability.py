"""Tracks whether an external service answers: a gauge, and one log line at each change."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Gauge

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


class Reachability:
    """Tracks one external service, which counts as reachable until it fails to answer."""

    def __init__(self, name: str, gauge: Gauge) -> None:
        """name: for log lines, "shared rate limits". gauge: 1 while the service answers, else 0."""
        self._name = name
        self._gauge = gauge
        self._answers = True

    @property
    def answers(self) -> bool:
        """Whether the service answered the last request."""
        return self._answers

    def report(self, answers: bool) -> None:
        """Record whether the service answered a request."""
        if answers == self._answers:
            return
        self._answers = answers
        self._gauge.set(int(answers))
        if answers:
            log.warning("available again", service=self._name)
        else:
            log.warning("unavailable; retrying", service=self._name)


class Freshness:
    """Tracks the age of data that stays in use while its source is unavailable.

    Logs an error every `stale_s` seconds without an answer. The gauge has the Unix time of the last answer.
    """

    def __init__(
        self, consequence: str, gauge: Gauge, stale_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """consequence: the log line, "keys that were revoked since are still accepted here"."""
        self._consequence, self._gauge, self._stale_s, self._clock = consequence, gauge, stale_s, clock
        self._read_s = self._logged_s = clock()

    def report(self, answers: bool) -> None:
        """Record whether the source answered a request."""
        now_s = self._clock()
        if answers:
            self._read_s = self._logged_s = now_s
            self._gauge.set_to_current_time()
        elif now_s - self._logged_s >= self._stale_s:
            self._logged_s = now_s
            log.error(self._consequence, seconds_since_read=round(now_s - self._read_s))
