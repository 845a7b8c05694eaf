"""`JobStore` over a database and files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from typeless_grpc.errors import AlreadyExists, InvalidInput, NotFound, RateLimited, SourceUnavailable, WrongState
from typeless_grpc.jobs.job import Job, NewJob, State, joined, shown
from typeless_grpc.jobs.store import UPLOAD_SCHEME, AudioReservation, JobPage, JobQuery, QueueStats
from typeless_grpc.speech.transcript import Segment, Transcript
from typeless_grpc.stores.database import (
    ID_BYTES,
    job_audio,
    job_chunks,
    job_deletions,
    job_traces,
    jobs,
    uploads,
    workers,
)
from typeless_grpc.stores.job_table import FORMAT, OPTIONS, TRANSCRIPT, JobTable, audio_path, job_of, larger, not_found

# Added to the life of an upload, so that it does not expire while a job that uses it is stored.
STORING_S = 60.0
# How long a deletion whose answer was lost can be repeated.
DELETION_S = 86_400.0


class SqlJobStore:
    """See `JobStore`."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def submit(self, new: NewJob, content: bytes | BinaryIO | None, reserved: AudioReservation | None = None) -> Job:
        """See `JobStore`."""
        self._table.queue.prepare()
        while True:
            if (made := self.made_by(new)) is not None:
                return made
            job_id = secrets.token_hex(ID_BYTES)
            n_bytes = 0
            if content is not None:
                n_bytes = _size(content)
                n_reserved = reserved.n_bytes if reserved else 0
                self._table.quota.check(new.owner, max(0, n_bytes - n_reserved))
                self._table.files.check_room(n_bytes)
                self._write_audio(job_id, content)
            try:
                return self._insert(job_id, new, n_bytes, reserved)
            except IntegrityError:  # the same request id at the same time: the other request was first
                self._table.delete_files(job_id)
            except SourceUnavailable as error:
                # The answer to the commit may be lost, and the job stored; maintenance deletes files without a row.
                # A full database has stored nothing.
                if error.reason == "STORAGE_FULL":
                    self._table.delete_files(job_id)
                raise
            except BaseException:
                self._table.delete_files(job_id)
                raise

    @contextmanager
    def reserve(self, owner: str) -> Iterator[AudioReservation]:
        """See `JobStore`."""
        lasts_s, check_disk = self._table.options.fetch_timeout_s, self._table.files.check_room
        with self._table.quota.reserve(owner, lasts_s, check_disk) as reservation:
            yield reservation

    def made_by(self, new: NewJob) -> Job | None:
        """See `JobStore`."""
        if not new.request_id:
            return None
        statement = sa.select(jobs).where(
            jobs.c.owner == new.owner, jobs.c.request_id == new.request_id, *self._table.visible(None)
        )
        with self._table.db.reading() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            return None
        if row.fingerprint != new.fingerprint:
            raise AlreadyExists(
                "request_id: it was used for a different request; a new job needs a new one.",
                reason="REQUEST_ID_REUSED",
            )
        return job_of(row)

    def get(self, job_id: str, owner: str | None) -> Job:
        """See `JobStore`."""
        with self._table.db.reading() as connection:
            row = connection.execute(
                sa.select(jobs).where(jobs.c.job_id == job_id, *self._table.visible(owner))
            ).one_or_none()
        if row is None:
            raise not_found(job_id)
        return job_of(row)

    def page(self, query: JobQuery) -> JobPage:
        """See `JobStore`."""
        statement = sa.select(jobs).where(*self._table.visible(query.owner))
        if query.states:
            statement = statement.where(jobs.c.state.in_([state.value for state in query.states]))
        for key, value in sorted((query.labels or {}).items()):
            statement = statement.where(self._labelled(key, value))
        if query.page_token:
            create_s, job_id = _page_start(query)
            statement = statement.where(sa.tuple_(jobs.c.create_s, jobs.c.job_id) < sa.tuple_(create_s, job_id))
        statement = statement.order_by(jobs.c.create_s.desc(), jobs.c.job_id.desc()).limit(query.page_size + 1)
        with self._table.db.reading() as connection:
            rows = connection.execute(statement).all()
        page = [job_of(row) for row in rows[: query.page_size]]
        return JobPage(page, _page_token(query, page[-1]) if len(rows) > query.page_size else "")

    def cancel(self, job_id: str, owner: str | None) -> Job:
        """See `JobStore`."""
        with self._table.db.writing() as connection:
            found = jobs.c.job_id == job_id
            if (
                connection.execute(sa.select(jobs.c.job_id).where(found, *self._table.visible(owner))).one_or_none()
                is None
            ):
                raise not_found(job_id)
            ended = self._table.end(connection, State.CANCELLED, found)
            if ended is not None:
                connection.execute(sa.delete(job_chunks).where(job_chunks.c.job_id == job_id))
        if ended is not None:
            self._table.leave_queue(self._table.queue.cancel, job_id, ended.n_workflows)
            self._table.delete_files(job_id, "chunks")
            self._table.drop_audio(job_id)
        return self.get(job_id, owner)

    def delete(self, job_id: str, owner: str | None) -> None:
        """See `JobStore`."""
        with self._table.db.writing() as connection:
            deleted = connection.execute(
                sa.delete(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.state != State.PROCESSING.value, *self._table.visible(owner))
                .returning(jobs.c.job_id, jobs.c.n_workflows, jobs.c.upload_id, jobs.c.owner)
            ).one_or_none()
            if deleted is not None:
                self._table.delete_dependents(connection, [deleted])
                expire_s = self._table.db.steady_s() + DELETION_S
                connection.execute(
                    sa.insert(job_deletions).values(job_id=job_id, owner=deleted.owner, expire_s=expire_s)
                )
        if deleted is None:
            if self._was_deleted(job_id, owner):
                return
            self.get(job_id, owner)
            raise WrongState("The job runs: cancel it first.", reason="JOB_RUNNING")
        self._table.delete_files_and_queue_entries([deleted])

    def stats(self, owner: str | None = None) -> QueueStats:
        """See `JobStore`."""
        now_s = self._table.db.now_s()
        alive = workers.c.heartbeat_s > now_s - self._table.options.worker_timeout_s
        with self._table.db.reading() as connection:
            counted = connection.execute(
                sa.select(jobs.c.state, sa.func.count(), (now_s - sa.func.min(jobs.c.create_s)))
                .where(*self._table.visible(owner))
                .group_by(jobs.c.state)
            ).all()
            n_workers, n_slots = connection.execute(
                sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(workers.c.max_jobs), 0)).where(alive)
            ).one()
        counts = {State(state): int(n) for state, n, _ in counted}
        ages_s = {State(state): max(0.0, age_s) for state, _, age_s in counted}
        return QueueStats(counts, int(n_workers), int(n_slots), ages_s.get(State.PENDING))

    def versions(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """See `JobStore`."""
        statement = sa.select(jobs.c.job_id, jobs.c.version).where(
            jobs.c.job_id.in_(job_ids), *self._table.visible(None)
        )
        with self._table.db.reading() as connection:
            return {row.job_id: row.version for row in connection.execute(statement)}

    def transcript(self, job: Job) -> Transcript:
        """See `JobStore`."""
        return shown(joined(self._transcripts(job.job_id, 0), job.options.model), job.options)

    def segments(self, job: Job, first_index: int) -> Sequence[Segment]:
        """See `JobStore`."""
        with self._table.db.reading() as connection:
            skipped = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(job_chunks.c.n_segments), 0)).where(
                    job_chunks.c.job_id == job.job_id,
                    job_chunks.c.first_segment + job_chunks.c.n_segments <= first_index,
                )
            ).scalar_one()
        parts = [
            shown(part, replace(job.options, output_formats=())) for part in self._transcripts(job.job_id, first_index)
        ]
        segments = [one for part in parts for one in part.segments]
        return segments[first_index - int(skipped) :]

    def _was_deleted(self, job_id: str, owner: str | None) -> bool:
        statement = sa.select(job_deletions.c.job_id).where(job_deletions.c.job_id == job_id)
        if owner is not None:
            statement = statement.where(job_deletions.c.owner == owner)
        with self._table.db.reading() as connection:
            return connection.execute(statement).one_or_none() is not None

    def _write_audio(self, job_id: str, content: bytes | BinaryIO) -> None:
        try:
            self._table.files.write(audio_path(job_id), content)
        except BaseException:
            self._table.delete_files(job_id)
            raise

    def _insert(self, job_id: str, new: NewJob, n_bytes: int, reserved: AudioReservation | None) -> Job:
        """Store a job and its entry in the queue, in one transaction. n_bytes: of its audio, already written."""
        with self._table.db.writing() as connection:
            self._check_pending(connection, new)
            if reserved is not None:
                self._table.quota.release_within(connection, reserved.reservation_id)
            if n_bytes:
                self._table.quota.check_within(connection, new.owner, n_bytes)
                connection.execute(sa.insert(job_audio).values(job_id=job_id, owner=new.owner, size_bytes=n_bytes))
            upload_id = self._checked_upload(connection, new)
            if new.request_id:  # an expired job that is not deleted yet releases its request_id
                connection.execute(
                    sa.update(jobs)
                    .where(jobs.c.owner == new.owner, jobs.c.request_id == new.request_id)
                    .where(jobs.c.expire_s <= self._table.db.steady_s())
                    .values(request_id=None)
                )
            row = connection.execute(
                sa.insert(jobs)
                .values(
                    job_id=job_id,
                    owner=new.owner,
                    caller=new.caller,
                    state=State.PENDING.value,
                    uri=new.uri,
                    upload_id=upload_id,
                    format=FORMAT.dump_json(new.format).decode(),
                    options=OPTIONS.dump_json(new.options).decode(),
                    options_message=new.options_message,
                    priority=int(new.priority),
                    labels=json.dumps(dict(new.labels)),
                    request_id=new.request_id or None,
                    fingerprint=new.fingerprint,
                    create_s=self._table.db.now_s(),
                    update_s=self._table.db.now_s(),
                    workflow_id=job_id,
                )
                .returning(jobs)
            ).one()
            if new.trace:
                headers = json.dumps(dict(new.trace))
                connection.execute(sa.insert(job_traces).values(job_id=job_id, headers=headers))
            self._table.queue.enqueue(connection, job_id, job_id, new.caller, int(new.priority))
            self._table.usage.submitted(connection, new.owner)  # last: it locks a row that all of an owner's jobs share
        return job_of(row)

    def _check_pending(self, connection: sa.Connection, new: NewJob) -> None:
        """Raise RateLimited if the caller has as many pending jobs as it may."""
        pending = sa.select(sa.func.count()).where(jobs.c.caller == new.caller, jobs.c.state == State.PENDING.value)
        n_pending = connection.execute(pending).scalar_one()
        if n_pending >= self._table.options.max_pending:
            message = f"You have {n_pending} pending jobs, the most that are taken; submit more once some have run."
            raise RateLimited(message, reason="TOO_MANY_PENDING_JOBS", retry_after_s=60.0, subject=new.caller)

    def _checked_upload(self, connection: sa.Connection, new: NewJob) -> str | None:
        """Check the upload of the job, and extend its life until the job is stored, which then needs it.

        It is a write and not a lock, so that a deletion that waits for it finds that the upload has not expired.
        """
        if not new.uri.startswith(UPLOAD_SCHEME):
            return None
        upload_id, now_s = new.uri.removeprefix(UPLOAD_SCHEME), self._table.db.steady_s()
        of_owner = [] if new.uploads_of is None else [uploads.c.owner == new.uploads_of]
        is_complete = connection.execute(
            sa.update(uploads)
            .where(uploads.c.upload_id == upload_id, uploads.c.expire_s > now_s, *of_owner)
            .values(expire_s=larger(uploads.c.expire_s, now_s + STORING_S))
            .returning(uploads.c.is_complete)
        ).scalar_one_or_none()
        if is_complete is None:
            raise NotFound(f"There is no upload '{upload_id[:64]}'.", reason="UPLOAD_NOT_FOUND")
        if not is_complete:
            raise WrongState("The upload is not complete: finish it first.", reason="UPLOAD_INCOMPLETE")
        return upload_id

    def _transcripts(self, job_id: str, first_segment: int) -> list[Transcript]:
        """Return the transcripts of the chunks with segments from an index on, in order; of all chunks for 0."""
        paths = self._chunk_paths(job_id, first_segment)
        while True:
            try:
                return [TRANSCRIPT.validate_json(data) for data in self._table.files.read(paths)]
            except FileNotFoundError as error:  # deleted between the two reads, with the job or by a cancellation
                self.get(job_id, None)
                before, paths = paths, self._chunk_paths(job_id, first_segment)
                if paths == before:
                    raise not_found(job_id) from error

    def _chunk_paths(self, job_id: str, first_segment: int) -> Sequence[str]:
        statement = sa.select(job_chunks.c.path).where(job_chunks.c.job_id == job_id)
        if first_segment:
            statement = statement.where(job_chunks.c.first_segment + job_chunks.c.n_segments > first_segment)
        with self._table.db.reading() as connection:
            return connection.execute(statement.order_by(job_chunks.c.chunk_index)).scalars().all()

    def _labelled(self, key: str, value: str) -> sa.ColumnElement[bool]:
        """Return the condition for jobs with a label."""
        if self._table.db.is_sqlite:
            pair = sa.func.json_each(jobs.c.labels).table_valued("key", "value", joins_implicitly=True)
            return sa.exists(sa.select(1).select_from(pair).where(pair.c.key == key, pair.c.value == value))
        return sa.cast(jobs.c.labels, JSONB).contains({key: value})


def _size(content: bytes | BinaryIO) -> int:
    """Return the size of bytes, or of the rest of a file from its position."""
    if isinstance(content, bytes):
        return len(content)
    start = content.tell()
    end = content.seek(0, io.SEEK_END)
    content.seek(start)
    return end - start


def _page_token(query: JobQuery, last: Job) -> str:
    token = json.dumps([last.create_s, last.job_id, filters_digest(query)])
    return base64.urlsafe_b64encode(token.encode()).decode()


def _page_start(query: JobQuery) -> tuple[float, str]:
    try:
        create_s, job_id, filters = json.loads(base64.urlsafe_b64decode(query.page_token.encode("ascii")))
        start = float(create_s), str(job_id)
        if not (math.isfinite(start[0]) and start[1].isascii() and start[1].isalnum()):
            raise ValueError("not a time and an id")
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
        raise InvalidInput("page_token", "is none that this server gave out", reason="PAGE_TOKEN_INVALID") from error
    if filters != filters_digest(query):
        raise InvalidInput("page_token", "belongs to a list with other filters", reason="PAGE_TOKEN_INVALID")
    return start


def filters_digest(query: JobQuery) -> str:
    """Return a digest of the filters, which all pages of a list share."""
    states = sorted(state.value for state in query.states)
    filters = json.dumps([query.owner, states, sorted((query.labels or {}).items())])
    return hashlib.sha256(filters.encode()).hexdigest()[:16]
