"""The queue of jobs, which DBOS keeps in the same database. Every server needs it, whether it runs jobs or not.

DBOS takes more than a second to import, so it is imported when the first job is submitted or run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from typeless_grpc.stores.database import Database, unavailable
from typeless_grpc.stores.postgresql import postgresql_engine

if TYPE_CHECKING:
    from dbos import DBOSClient
    from dbos._sys_db import SystemDatabase

QUEUE = "typeless-jobs"
WORKFLOW = "typeless-job"
APPLICATION = "typeless"
# Not the version of the software, whose next version runs the jobs of this one. Change it only if the workflow of a job
# no longer has its steps in the same order.
VERSION = "jobs-v1"

# For one step of a migration of DBOS's tables.
MIGRATION_S = 300.0

_preparing = threading.Lock()


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """Drop DBOS's errors about cancelled jobs: any caller could fill the log with their tracebacks."""
    from dbos import _error as error  # they have no public name

    cancellations = (error.DBOSAwaitedWorkflowCancelledError, error.DBOSWorkflowCancelledError)
    return record.exc_info is None or not isinstance(record.exc_info[1], cancellations)


def prepare(database: Database) -> None:
    """Import DBOS, send its log lines to ours, and create its tables. Raises SourceUnavailable."""
    with _preparing:
        logger = logging.getLogger("dbos")
        if not logger.handlers:  # otherwise it writes lines of its own
            logger.addHandler(logging.NullHandler())
        from dbos import DBOS  # noqa: F401

        logger.setLevel(logging.ERROR)
        logger.addFilter(is_no_cancellation)
        try:
            _make_tables(database)
        except Exception as error:  # errors of two libraries, and of DBOS itself
            raise unavailable(error) from error


def _make_tables(database: Database) -> None:
    """Create the tables as `DBOS.migrate` does, but over our connections, whose waits are bounded."""
    from dbos._migration import should_migrate
    from dbos._serialization import DBOSPortableJSON
    from dbos._sys_db import SystemDatabase

    engine = database.engine
    if not database.is_sqlite:
        if not should_migrate(engine, "dbos", True):
            return
        # A migration of DBOS may have to build an index over all rows.
        migrating = replace(database.timeouts, statement_s=MIGRATION_S, answer_s=2 * MIGRATION_S)
        engine = postgresql_engine(engine.url, pool_size=2, max_overflow=0, timeouts=migrating)
    made = SystemDatabase.create(
        system_database_url=database.url,
        engine=engine,
        engine_kwargs={},
        schema=None,
        serializer=DBOSPortableJSON,
        executor_id=None,
    )
    try:
        made.run_migrations()
        _register(made)
    finally:
        made.destroy()
        if engine is not database.engine:
            engine.dispose()


def _register(system: SystemDatabase) -> None:
    """Add the queue if it is missing. DBOS reads its queues at its launch, and only a second later again.

    Until a worker has set its own limits (see `DbosRunner`), it runs one job at a time.
    """
    system.upsert_queue(
        name=QUEUE,
        concurrency=None,
        worker_concurrency=1,
        rate_limit_max=None,
        rate_limit_period_sec=None,
        polling_interval_sec=0.05,
        update_existing=False,
        application_name=APPLICATION,
        partition_worker_concurrency=1,
    )


def partition(caller: str) -> str:
    """Return the partition of the queue that holds a caller's jobs."""
    return caller or "nobody"


class DbosQueue:
    """`Queue` by DBOS. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._client: DBOSClient | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """See `Queue`."""
        self.client()

    def enqueue(
        self, connection: sa.Connection, workflow_id: str, job_id: str, caller: str, priority: int, delay_s: float = 0.0
    ) -> None:
        """See `Queue`."""
        options: Any = {
            "queue_name": QUEUE,
            "workflow_name": WORKFLOW,
            "workflow_id": workflow_id,
            "app_version": VERSION,
            "priority": priority,
            "queue_partition_key": partition(caller),
        }
        if delay_s > 0:
            options["delay_seconds"] = delay_s
        self.client().enqueue_in_transaction(connection, options, job_id)

    def cancel(self, workflow_ids: Sequence[str]) -> None:
        """See `Queue`."""
        try:
            self.client().cancel_workflows(list(workflow_ids))
        except sa.exc.SQLAlchemyError as error:
            raise unavailable(error) from error

    def forget(self, workflow_ids: Sequence[str]) -> None:
        """See `Queue`."""
        try:
            self.client().delete_workflows(list(workflow_ids))
        except sa.exc.SQLAlchemyError as error:
            raise unavailable(error) from error

    def client(self) -> DBOSClient:
        """Return the client, which the first call creates. Raises SourceUnavailable."""
        with self._lock:
            if self._client is None:
                prepare(self._database)
                from dbos import DBOSClient
                from dbos._serialization import DBOSPortableJSON

                self._client = DBOSClient(
                    system_database_engine=self._database.engine,
                    serializer=DBOSPortableJSON,
                    application_name=APPLICATION,
                    lazy=True,
                    retry_connection_errors=False,
                )
            return self._client

    def close(self) -> None:
        """Close the client."""
        with self._lock:
            if self._client is not None:
                self._client.destroy()
                self._client = None
