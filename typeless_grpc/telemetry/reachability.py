"""Whether something outside answers: a gauge, and one log line each time that changes."""

from __future__ import annotations

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
