"""A queue for tests, which hands out nothing. It passes the same contract tests as the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa


@dataclass(frozen=True)
class Queued:
    """An entry of the queue."""

    workflow_id: str
    job_id: str
    caller: str
    priority: int
    delay_s: float


class FakeQueue:
    """Records its calls. Unlike the real queue, it keeps entries of a transaction that was rolled back."""

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
