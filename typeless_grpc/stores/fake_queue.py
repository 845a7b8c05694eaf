"""A queue that hands out nothing by itself; for tests, and kept here so that it obeys the same contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa


@dataclass(frozen=True)
class Queued:
    """A place in the queue."""

    workflow_id: str
    job_id: str
    caller: str
    priority: int
    delay_s: float


class FakeQueue:
    """Remembers what it was told. Unlike a real one, it does not forget what a transaction undid."""

    def __init__(self) -> None:
        self.queued: list[Queued] = []
        self.cancelled: list[str] = []
        self.forgotten: list[str] = []

    def prepare(self) -> None:
        """See `Queue`."""

    def enqueue(
        self, connection: sa.Connection, workflow_id: str, job_id: str, caller: str, priority: int, delay_s: float = 0.0
    ) -> None:
        """See `Queue`."""
        assert connection.in_transaction()
        self.queued.append(Queued(workflow_id, job_id, caller, priority, delay_s))

    def cancel(self, workflow_ids: Sequence[str]) -> None:
        """See `Queue`."""
        self.cancelled += workflow_ids

    def forget(self, workflow_ids: Sequence[str]) -> None:
        """See `Queue`."""
        self.forgotten += workflow_ids
