"""Maintenance of jobs in the database: heartbeats of workers, lost entries of the queue, and deletion.

Workers call it from `dbos/recovery.py`, and every server from `janitor.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from typeless_grpc.jobs.job import State
from typeless_grpc.stores.database import job_audio, job_deletions, jobs, workers
from typeless_grpc.stores.job_table import JobTable
from typeless_grpc.stores.orphans import Orphans


class JobMaintenance:
    """The statements of maintenance, which workers and servers repeat. Several may run them at once."""

    def __init__(self, table: JobTable) -> None:
        self._table = table
        self._orphans = Orphans(table.db, table.files, "jobs", jobs.c.job_id)

    def heartbeat(self, worker_id: str, max_jobs: int) -> None:
        """Record that a worker is alive, and how many jobs it may run at once."""
        with self._table.db.writing() as connection:
            values = {"heartbeat_s": self._table.db.now_s(), "max_jobs": max_jobs}
            mine = workers.c.worker_id == worker_id
            if not connection.execute(sa.update(workers).where(mine).values(**values)).rowcount:
                connection.execute(sa.insert(workers).values(worker_id=worker_id, **values))

    def sign_off(self, worker_ids: Collection[str]) -> None:
        """Record that workers have ended."""
        with self._table.db.writing() as connection:
            connection.execute(sa.delete(workers).where(workers.c.worker_id.in_(worker_ids)))

    def workers(self) -> Mapping[str, float]:
        """Return the time of the last heartbeat of every worker that has not signed off; each heartbeat changes it."""
        with self._table.db.reading() as connection:
            return {row.worker_id: row.heartbeat_s for row in connection.execute(sa.select(workers))}

    def queue_again(self, is_queued: sa.ColumnElement[bool], idle_s: float, limit: int = 1000) -> int:
        """Queue jobs again that wait for a run but have left the queue by mistake; return how many.

        is_queued: a condition on jobs.c.workflow_id. idle_s: only jobs that have not changed for this long.
        """
        self._table.queue.prepare()
        waiting = jobs.c.state.in_([State.PENDING.value, State.PROCESSING.value])
        old = jobs.c.update_s < self._table.db.now_s() - idle_s
        with self._table.db.writing() as connection:
            statement = sa.select(jobs).where(waiting, old, sa.not_(is_queued)).limit(limit)
            rows = connection.execute(statement.with_for_update(skip_locked=True)).all()
            for row in rows:
                self._table.queue_again(connection, row, delay_s=0.0)
        return len(rows)

    def delete_expired(self, limit: int = 500) -> int:
        """Delete expired jobs and all that belongs to them; return how many."""
        with self._table.db.writing() as connection:
            due = sa.select(jobs.c.job_id).where(jobs.c.expire_s <= self._table.db.steady_s()).limit(limit)
            expired = connection.execute(
                sa.delete(jobs)
                .where(jobs.c.job_id.in_(due))
                .returning(jobs.c.job_id, jobs.c.n_workflows, jobs.c.upload_id)
            ).all()
            self._table.delete_dependents(connection, expired)
            connection.execute(sa.delete(job_deletions).where(job_deletions.c.expire_s <= self._table.db.steady_s()))
        self._table.delete_files_and_queue_entries(expired)
        self._table.quota.delete_expired()
        return len(expired)

    def drop_audio(self, limit: int = 500) -> int:
        """Delete the audio of jobs that have ended, where `JobTable.drop_audio` failed; return the number of jobs."""
        if self._table.options.keep_audio:
            return 0
        ended = jobs.c.state.in_([state.value for state in State if state.is_final])
        statement = sa.select(job_audio.c.job_id).join(jobs, jobs.c.job_id == job_audio.c.job_id).where(ended)
        with self._table.db.reading() as connection:
            ids = connection.execute(statement.limit(limit)).scalars().all()
        for job_id in ids:
            self._table.drop_audio(job_id)
        return len(ids)

    def delete_old_usage(self) -> None:
        """Delete usage that is older than its retention."""
        self._table.usage.delete_old()

    def delete_orphans(self, before_s: float) -> int:
        """See `Orphans.delete`; for the files of jobs."""
        return self._orphans.delete(before_s)
