"""Keeps the reports of an engine for each front until the front has read them.

A batch may have windows of several fronts. It is reported to the front of its first window only, so that the sums over
all fronts are right.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context, ContextVar

from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.observer import BatchReport
from typeless_grpc.engines.messages import batch_message
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb

MAX_REPORTS = 4096  # kept for a front; one that does not read them for so long loses the oldest

# The front and its number of the call that code runs for.
origin: ContextVar[tuple[str, int]] = ContextVar("origin", default=("", 0))


class FrontReports:
    """The reports for one front that watches. changed: set by each report."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._reports: deque[pb.Report] = deque(maxlen=MAX_REPORTS)

    def add(self, report: pb.Report) -> None:
        """Keep a report."""
        self._reports.append(report)
        self.changed.set()

    def take(self) -> list[pb.Report]:
        """Return the reports so far, and forget them."""
        taken = list(self._reports)
        self._reports.clear()
        self.changed.clear()
        return taken


class Reports:
    """An `EngineObserver` that reports to fronts. Its methods are called on the event loop."""

    def __init__(self) -> None:
        self._fronts: dict[str, FrontReports] = {}

    def open(self, front: str) -> FrontReports:
        """Begin to keep reports for a front. If it was watching already, the new watch replaces the old one."""
        kept = self._fronts[front] = FrontReports()
        return kept

    def close(self, front: str, kept: FrontReports) -> None:
        """End what `open` began."""
        if self._fronts.get(front) is kept:
            del self._fronts[front]

    def wake(self) -> None:
        """Let all fronts know that the state has changed."""
        for kept in self._fronts.values():
            kept.changed.set()

    def batch_ended(self, batch: BatchReport) -> None:
        """See `EngineObserver`."""
        front = batch.windows[0].context.get(origin, ("", 0))[0]

        def call_of(context: Context) -> int:
            its_front, call = context.get(origin, ("", 0))
            return call if its_front == front else 0

        if front in self._fronts:
            self._fronts[front].add(pb.Report(batch_ended=batch_message(batch, call_of)))

    def refused(self, lane: Lane, reason: str) -> None:
        """See `EngineObserver`."""
        self._report(pb.Report(refused=pb.Refused(lane=lane, reason=reason)))

    def decoded_again(self, reason: str) -> None:
        """See `EngineObserver`."""
        self._report(pb.Report(decoded_again=reason))

    def suppressed(self, reason: str) -> None:
        """See `EngineObserver`."""
        self._report(pb.Report(suppressed=reason))

    def _report(self, report: pb.Report) -> None:
        if kept := self._fronts.get(origin.get()[0]):
            kept.add(report)
