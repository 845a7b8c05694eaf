"""The table of jobs, and the few ways in which its rows change.

A job's state is its row. Every change is one transaction, guarded by the state and, for a run, by its id. A job enters
the queue in the same transaction, and leaves it afterwards: if that fails, the queue hands the job to a worker, whose
claim returns that there is nothing to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import sqlalchemy as sa
from pydantic import TypeAdapter

from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.errors import NotFound, SourceUnavailable
from typeless_grpc.jobs.job import Failure, Job, Priority, State, states_before
from typeless_grpc.jobs.store import Run, RunLost
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.stores.database import Database, job_audio, job_chunks, job_traces, jobs, upload_digests, uploads
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.job_usage import JobUsage
from typeless_grpc.stores.storage_quota import StorageQuota
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

OPTIONS = TypeAdapter(DecodeOptions)
FORMAT = TypeAdapter(AudioFormat)
TRANSCRIPT = TypeAdapter(Transcript)
FAILURE = TypeAdapter(Failure)


class Queue(Protocol):
    """Hands jobs to workers, in the same database; `stores.dbos.queue` implements it."""

    def prepare(self) -> None:
        """Prepare for `enqueue`; call it outside of a transaction. Raises SourceUnavailable."""
        ...

    def enqueue(
        self, connection: sa.Connection, workflow_id: str, job_id: str, caller: str, priority: int, delay_s: float = 0.0
    ) -> None:
        """Put a job into the queue, in the connection's transaction."""
        ...

    def cancel(self, workflow_ids: Sequence[str]) -> None:
        """Remove workflows from the queue, also running ones."""
        ...

    def forget(self, workflow_ids: Sequence[str]) -> None:
        """Remove workflows from the queue, and delete all records of them."""
        ...


@dataclass(frozen=True)
class JobStoreOptions:
    """How jobs are stored.

    ttl_s: how long a job is kept after its end. max_pending: pending jobs of one caller. worker_timeout_s: time without
    a heartbeat after which a worker is dead. max_owner_bytes: an owner's uploads and the audio of its jobs together.
    keep_audio: keep a job's audio as long as the job, instead of until the job ends. fetch_timeout_s: limit for
    fetching the audio of a job. usage_retention_days: how long the usage of owners is kept.
    """

    ttl_s: float = 86_400.0
    max_pending: int = 10_000
    worker_timeout_s: float = 20.0
    max_owner_bytes: int = 20 * 1024**3
    keep_audio: bool = False
    fetch_timeout_s: float = 300.0
    usage_retention_days: int = 400


class JobTable:
    """What the stores of jobs share: `db`, `files`, `queue`, `quota`, `usage` and `options`, and changes of rows."""

    def __init__(self, database: Database, files: Files, queue: Queue, options: JobStoreOptions) -> None:
        self.db, self.files, self.queue, self.options = database, files, queue, options
        self.quota = StorageQuota(database, options.max_owner_bytes)
        self.usage = JobUsage(database, options.usage_retention_days)

    def use(self, options: JobStoreOptions) -> None:
        """Apply these options from now on. Jobs that have ended keep the time at which they expire."""
        self.options = options
        self.quota.use(options.max_owner_bytes)

    def visible(self, owner: str | None) -> list[sa.ColumnElement[bool]]:
        """Return the condition for jobs that an owner may see: its own, until they expire."""
        kept = sa.or_(jobs.c.expire_s.is_(None), jobs.c.expire_s > self.db.steady_s())
        return [kept] if owner is None else [kept, jobs.c.owner == owner]

    def write(
        self, connection: sa.Connection, run: Run, state: State, *conditions: sa.ColumnElement[bool], **values: Any
    ) -> Any:
        """Change the job of a run, and return its row. Raises RunLost."""
        row = connection.execute(
            sa.update(jobs)
            .where(*held(run), jobs.c.state.in_([before.value for before in states_before(state)]), *conditions)
            .values(state=state.value, **values, **self.changed())
            .returning(jobs)
        ).one_or_none()
        if row is None:
            raise RunLost
        return row

    def end(
        self,
        connection: sa.Connection,
        state: State,
        *conditions: sa.ColumnElement[bool],
        failure: Failure | None = None,
        **values: Any,
    ) -> Any | None:
        """End a job, and return its row; None if the conditions or its state do not allow it."""
        now_s, lasts_from_s = self.db.now_s(), self.db.steady_s()
        return connection.execute(
            sa.update(jobs)
            .where(*conditions, jobs.c.state.in_([before.value for before in states_before(state)]))
            .values(
                state=state.value,
                run_id=None,
                end_s=now_s,
                expire_s=lasts_from_s + self.options.ttl_s,
                failure=FAILURE.dump_json(failure).decode() if failure else None,
                progress_message="",
                **values,
                **self.changed(),
            )
            .returning(jobs)
        ).one_or_none()

    def changed(self) -> dict[str, Any]:
        """Return the columns that every change of a job's row sets: watchers see the new version."""
        return {"version": jobs.c.version + 1, "update_s": self.db.now_s()}

    def queue_again(self, connection: sa.Connection, row: Any, delay_s: float) -> None:
        """Put a job into the queue again, as a new workflow that starts after delay_s. row: of the job."""
        workflow_id = f"{row.job_id}.{row.n_workflows + 1}"
        connection.execute(
            sa.update(jobs)
            .where(jobs.c.job_id == row.job_id)
            .values(workflow_id=workflow_id, n_workflows=row.n_workflows + 1, **self.changed())
        )
        self.queue.enqueue(connection, workflow_id, row.job_id, row.caller, row.priority, delay_s)

    def delete_dependents(self, connection: sa.Connection, deleted: Sequence[Any]) -> None:
        """Delete rows of results, and let uploads expire that no other job needs."""
        for table in (job_chunks, job_audio, job_traces):
            connection.execute(sa.delete(table).where(table.c.job_id.in_([row.job_id for row in deleted])))
        upload_ids = [row.upload_id for row in deleted if row.upload_id]
        if upload_ids:
            others = sa.select(jobs.c.upload_id).where(jobs.c.upload_id.is_not(None))
            connection.execute(
                sa.update(uploads)
                .where(uploads.c.upload_id.in_(upload_ids), uploads.c.upload_id.not_in(others))
                .values(expire_s=0.0)
            )
            connection.execute(
                sa.delete(upload_digests).where(
                    upload_digests.c.upload_id.in_(upload_ids),
                    upload_digests.c.upload_id.not_in(others),
                    upload_digests.c.upload_id.not_in(sa.select(uploads.c.upload_id)),
                )
            )

    def delete_files_and_queue_entries(self, deleted: Sequence[Any]) -> None:
        """Delete what deleted jobs have outside the transaction. Call it after the commit; failures are only logged."""
        for row in deleted:
            self.leave_queue(self.queue.forget, row.job_id, row.n_workflows)
            self.delete_files(row.job_id)

    def drop_audio(self, job_id: str) -> None:
        """Delete the audio of a job that has ended.

        It counts for its owner until then. Maintenance retries if this fails.
        """
        if self.options.keep_audio or not self.delete_files(job_id, "audio"):
            return
        try:
            with self.db.writing() as connection:
                connection.execute(sa.delete(job_audio).where(job_audio.c.job_id == job_id))
        except SourceUnavailable:
            log.warning("audio of a job that has ended still counts; maintenance will correct it", job_id=job_id)

    def leave_queue(self, leave: Callable[[Sequence[str]], None], job_id: str, n_workflows: int) -> None:
        """Remove all workflows of a job from the queue. leave: `Queue.cancel` or `Queue.forget`."""
        try:
            leave([job_id, *(f"{job_id}.{n}" for n in range(2, n_workflows + 1))])
        except SourceUnavailable:
            log.warning("a job could not be removed from the queue; its next claim will end it", job_id=job_id)

    def delete_files(self, job_id: str, part: str = "") -> bool:
        """Delete files of a job; return whether they are deleted."""
        try:
            self.files.delete_tree(f"jobs/{job_id}/{part}".rstrip("/"))
        except SourceUnavailable:
            log.warning("files of a job could not be deleted now; maintenance will retry", job_id=job_id)
            return False
        return True


def held(run: Run) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for the job of a run that still has its lease."""
    return jobs.c.job_id == run.job.job_id, jobs.c.run_id == run.run_id


def larger(column: sa.ColumnElement[float], value: Any) -> sa.ColumnElement[float]:
    """Return the larger of a column and a value, in SQL that both databases have."""
    return sa.case((column > value, column), else_=value)


def audio_path(job_id: str) -> str:
    """Return the path in `Files` of the audio that was sent with a job."""
    return f"jobs/{job_id}/audio"


def not_found(job_id: str) -> NotFound:
    """Return the error for a job that does not exist, or that its caller may not see."""
    return NotFound(f"There is no job '{job_id[:64]}'.", reason="JOB_NOT_FOUND")


def _options(text: str) -> DecodeOptions:
    """Read options; lists of the JSON become tuples."""
    options = OPTIONS.validate_json(text)
    tuples: dict[str, Any] = {name: tuple(value) for name, value in vars(options).items() if isinstance(value, list)}
    return replace(options, **tuples)


def job_of(row: Any) -> Job:
    """Return the job of a row of the table `jobs`."""
    return Job(
        job_id=row.job_id,
        owner=row.owner,
        caller=row.caller,
        state=State(row.state),
        uri=row.uri,
        format=FORMAT.validate_json(row.format),
        options=_options(row.options),
        options_message=bytes(row.options_message),
        priority=Priority(row.priority),
        labels=json.loads(row.labels),
        create_s=row.create_s,
        start_s=row.start_s,
        end_s=row.end_s,
        expire_s=row.expire_s,
        progress=row.progress,
        progress_message=row.progress_message,
        attempt=row.attempt,
        failure=FAILURE.validate_json(row.failure) if row.failure else None,
        audio_s=row.audio_s,
        n_chunks=row.n_chunks,
        n_segments=row.n_segments,
        position=row.position,
        language=row.language,
        processing_s=row.processing_s,
        queue_s=row.queue_s,
        n_windows=row.n_windows,
        version=row.version,
    )
