"""The workflows of jobs in DBOS, and where they run.

Everything private of DBOS 3.4 that running jobs need is used here and in `patches.py`. That is why its version is
pinned, and why the fault tests kill, freeze and starve workers. Here: `_recover_pending_workflows` and
`reenqueue_for_recovery`, which reassign jobs, `_active_workflows_set` (what runs in this process), and
`_retry_connection_errors` (switched off to stop).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from typeless_grpc.stores.database import Database, jobs
from typeless_grpc.stores.dbos.queue import QUEUE

if TYPE_CHECKING:
    from dbos import DBOS


class Workflows:
    """The workflows of the queue of jobs, as one running worker sees them."""

    def __init__(self, dbos: DBOS, database: Database, worker_id: str) -> None:
        self._dbos, self._database, self._worker_id = dbos, database, worker_id
        columns: list[Any] = [sa.column(name) for name in ("workflow_uuid", "status", "queue_name", "executor_id")]
        self._table = sa.table("workflow_status", *columns, schema=None if database.is_sqlite else "dbos")

    # ---- in this process ----

    def active(self) -> set[str]:
        """Return the ids of the workflows that run here."""
        return set(self._dbos._active_workflows_set.activeList())

    def n_active(self) -> int:
        """Return how many run here."""
        return self._dbos._active_workflows_set.count_for_queue(QUEUE)

    def n_active_of(self, part: str) -> int:
        """Return how many of one partition of the queue run here."""
        return self._dbos._active_workflows_set.count_for_partition(QUEUE, part)

    def stop_retrying(self) -> None:
        """Make calls to an unavailable database fail, so that the process does not wait for their threads."""
        self._dbos._sys_db._retry_connection_errors = False

    # ---- in the database ----

    def executors(self) -> set[str]:
        """Return the ids of all workers that hold a job."""
        held = sa.select(self._table.c.executor_id).distinct().where(*self._pending())
        with self._database.reading() as connection:
            return {worker for worker in connection.execute(held).scalars() if worker}

    def held(self) -> set[str]:
        """Return the ids of the workflows that this worker holds according to the database."""
        mine = self._table.c.executor_id == self._worker_id
        with self._database.reading() as connection:
            return set(
                connection.execute(sa.select(self._table.c.workflow_uuid).where(*self._pending(), mine)).scalars()
            )

    def requeue(self, workflow_id: str) -> None:
        """Put a workflow that this worker holds back to where it was in the queue."""
        self._dbos._sys_db.reenqueue_for_recovery(workflow_id, [self._worker_id], QUEUE)

    def reassign(self, workers: Collection[str]) -> None:
        """Put all jobs that these workers hold back into the queue. Several processes may do so at once."""
        self._dbos._recover_pending_workflows(sorted(workers))

    def is_queued(self) -> sa.ColumnElement[bool]:
        """Return a condition on `jobs`: the job's workflow waits or runs."""
        return sa.exists().where(
            self._table.c.workflow_uuid == jobs.c.workflow_id,
            self._table.c.status.in_(["ENQUEUED", "DELAYED", "PENDING"]),
        )

    def _pending(self) -> list[sa.ColumnElement[bool]]:
        return [self._table.c.status == "PENDING", self._table.c.queue_name == QUEUE]
