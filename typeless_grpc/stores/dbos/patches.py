"""Changes to the polls of DBOS 3.4, so that callers take turns and an idle worker costs little.

Two queries of every poll are replaced. The one for the queue's row would give all workers one limit; each has its own.
The one for the partitions with waiting jobs is sent only if a job waits, and returns the callers that are next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from typeless_grpc.stores.database import Database
from typeless_grpc.stores.dbos.queue import QUEUE

if TYPE_CHECKING:
    from dbos import DBOS


def keep_own_limits(dbos: DBOS, queue: Any) -> None:
    """Make this process use its own limits, which also saves a query at every poll."""
    system = dbos._sys_db
    read = system.get_queue

    def get_queue(name: str, **kwargs: Any) -> Any:
        return queue if name == queue.name else read(name, **kwargs)

    system.get_queue = get_queue  # type: ignore[method-assign]


def waiting_partitions(dbos: DBOS, database: Database) -> Callable[[], list[str]]:
    """Return a query for the partitions whose jobs wait.

    If no job waits, as at most polls, it costs a third of DBOS's own query, which takes much of a core at twenty polls
    a second.
    """
    find = dbos._sys_db.get_queue_partitions
    table = "workflow_status" if database.is_sqlite else "dbos.workflow_status"
    # The second condition follows from the first: spelled out, it lets SQLite use the index on what waits or runs.
    waiting = (
        f"SELECT 1 FROM {table} WHERE queue_name = '{QUEUE}' AND status = 'ENQUEUED'"
        " AND status IN ('ENQUEUED', 'PENDING') LIMIT 1"
    )

    def query() -> list[str]:
        with database.engine.connect() as connection:
            if connection.exec_driver_sql(waiting).first() is None:
                return []
        return find(QUEUE)

    return query


def choose_partitions(dbos: DBOS, queue: Any, choose: Callable[[], tuple[list[str], int]]) -> None:
    """Make each poll see only the partitions that `choose` returns, each with at most that many jobs here."""

    def get_queue_partitions(name: str) -> list[str]:
        chosen, queue._partition_worker_concurrency = choose()
        return chosen

    dbos._sys_db.get_queue_partitions = get_queue_partitions  # type: ignore[method-assign, assignment]
