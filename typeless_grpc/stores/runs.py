"""`RunStore` over a database and files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any, BinaryIO

import sqlalchemy as sa

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.errors import NotFound
from typeless_grpc.jobs.job import CRASHED, MAX_CRASHES, Chunk, Failure, Job, State, states_before
from typeless_grpc.jobs.store import Run, RunLost
from typeless_grpc.stores.database import job_audio, job_chunks, job_traces, jobs
from typeless_grpc.stores.files import damaged
from typeless_grpc.stores.job_table import TRANSCRIPT, JobTable, audio_path, held, job_of, larger
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


class SqlRunStore:
    """See `RunStore`."""

    def __init__(self, table: JobTable, sources: AudioSources) -> None:
        self._table, self._sources = table, sources

    def is_quarantined(self, job_id: str) -> bool:
        """See `RunStore`."""
        with self._table.db.reading() as connection:
            state = connection.execute(sa.select(jobs.c.state).where(jobs.c.job_id == job_id)).scalar_one_or_none()
        return bool(state == State.PROCESSING.value)

    def claim(self, job_id: str, worker_id: str) -> Run | None:
        """See `RunStore`."""
        found = jobs.c.job_id == job_id
        with self._table.db.writing() as connection:
            row = connection.execute(sa.select(jobs).where(found).with_for_update()).one_or_none()
            if row is None or State(row.state).is_final:
                return None
            n_crashes = row.n_crashes + (row.state == State.PROCESSING.value)
            if n_crashes >= MAX_CRASHES:
                self._table.end(connection, State.FAILED, found, failure=CRASHED)
            else:
                claimed = self._claimed(connection, found, n_crashes)
                headers = connection.execute(
                    sa.select(job_traces.c.headers).where(job_traces.c.job_id == job_id)
                ).scalar_one_or_none()
        if n_crashes >= MAX_CRASHES:
            self._table.drop_audio(job_id)
            return None
        log.info("job run begins", job_id=job_id, attempt=claimed.attempt, n_crashes=n_crashes, worker_id=worker_id)
        waited_s = max(0.0, claimed.update_s - row.update_s)
        return Run(claimed.run_id, job_of(claimed), claimed.n_failures, waited_s, json.loads(headers or "{}"))

    def _claimed(self, connection: sa.Connection, found: sa.ColumnElement[bool], n_crashes: int) -> Any:
        """Mark the job as processing, with a new run that fences off the runs before it."""
        return connection.execute(
            sa.update(jobs)
            .where(found, jobs.c.state.in_([state.value for state in states_before(State.PROCESSING)]))
            .values(
                state=State.PROCESSING.value,
                run_id=uuid.uuid4().hex,
                attempt=jobs.c.attempt + 1,
                n_crashes=n_crashes,
                start_s=sa.func.coalesce(jobs.c.start_s, self._table.db.now_s()),
                progress_message="Transcribing",
                **self._table.changed(),
            )
            .returning(jobs)
        ).one()

    def open_audio(self, job: Job) -> BinaryIO:
        """See `RunStore`."""
        if job.uri:
            return self._sources.open(job.uri, None, "audio.uri")
        sized = sa.select(job_audio.c.size_bytes).where(job_audio.c.job_id == job.job_id)
        with self._table.db.reading() as connection:
            size_bytes = connection.execute(sized).scalar_one_or_none()
        try:
            if size_bytes is not None and self._table.files.size_bytes(audio_path(job.job_id)) != size_bytes:
                raise damaged()
            return self._table.files.open(audio_path(job.job_id))
        except FileNotFoundError as error:
            raise NotFound("The job's audio is no longer there.", reason="AUDIO_NOT_FOUND") from error

    def kept_chunk(self, run: Run, index: int) -> bool | None:
        """See `RunStore`."""
        if index >= run.job.n_chunks:
            return None
        statement = sa.select(job_chunks.c.is_last).where(
            job_chunks.c.job_id == run.job.job_id, job_chunks.c.chunk_index == index
        )
        with self._table.db.reading() as connection:
            kept = connection.execute(statement).scalar_one_or_none()
        if kept is None:
            raise RunLost
        return bool(kept)

    def keep_chunk(self, run: Run, chunk: Chunk) -> None:
        """See `RunStore`."""
        job_id = run.job.job_id
        name = f"chunks/{chunk.index:06d}-{run.run_id}.json"
        self._table.files.write(f"jobs/{job_id}/{name}", TRANSCRIPT.dump_json(chunk.transcript))
        try:
            self._count_chunk(run, chunk, f"jobs/{job_id}/{name}")
        except RunLost:
            # Nothing of a deleted job may stay; the files of another one go with it.
            self._table.delete_files(job_id, name if self._is_stored(job_id) else "")
            raise

    def _count_chunk(self, run: Run, chunk: Chunk, path: str) -> None:
        job_id, n_segments = run.job.job_id, len(chunk.transcript.segments)
        end_s = chunk.end / SAMPLE_RATE_HZ
        with self._table.db.writing() as connection:
            position = connection.execute(sa.select(jobs.c.position).where(jobs.c.job_id == job_id)).scalar()
            self._table.write(
                connection,
                run,
                State.PROCESSING,
                sa.and_(jobs.c.n_chunks == chunk.index),
                n_chunks=chunk.index + 1,
                n_segments=jobs.c.n_segments + n_segments,
                position=chunk.end,
                progress=larger(jobs.c.progress, chunk.progress),
                progress_message=f"{_clock(end_s)} of audio transcribed",
                language=chunk.language,
                audio_s=end_s if chunk.is_last else jobs.c.audio_s,
                processing_s=jobs.c.processing_s + chunk.processing_s,
                queue_s=jobs.c.queue_s + chunk.queue_s,
                n_windows=jobs.c.n_windows + chunk.n_windows,
                n_crashes=0,
                n_failures=0,
            )
            before = sa.select(jobs.c.n_segments - n_segments).where(jobs.c.job_id == job_id).scalar_subquery()
            connection.execute(
                sa.insert(job_chunks).values(
                    job_id=job_id,
                    chunk_index=chunk.index,
                    end=chunk.end,
                    is_last=chunk.is_last,
                    first_segment=before,
                    n_segments=n_segments,
                    path=path,
                )
            )
            n_samples = (chunk.end - (position or 0)) * chunk.n_channels
            self._table.usage.transcribed(connection, run.job.owner, n_samples)

    def _is_stored(self, job_id: str) -> bool:
        with self._table.db.reading() as connection:
            return connection.execute(sa.select(jobs.c.job_id).where(jobs.c.job_id == job_id)).first() is not None

    def complete(self, run: Run) -> None:
        """See `RunStore`."""
        with self._table.db.writing() as connection:
            if self._table.end(connection, State.COMPLETED, *held(run), progress=1.0) is None:
                raise RunLost
        self._table.drop_audio(run.job.job_id)

    def fail(self, run: Run, failure: Failure) -> None:
        """See `RunStore`."""
        with self._table.db.writing() as connection:
            if self._table.end(connection, State.FAILED, *held(run), failure=failure) is None:
                raise RunLost
        self._table.drop_audio(run.job.job_id)

    def retry(self, run: Run, failure: Failure, delay_s: float) -> None:
        """See `RunStore`."""
        self._table.queue.prepare()
        with self._table.db.writing() as connection:
            row = self._table.write(
                connection,
                run,
                State.PENDING,
                run_id=None,
                n_failures=jobs.c.n_failures + 1,
                progress_message=f"Retried later: {failure.message}",
            )
            self._table.queue_again(connection, row, delay_s)

    def hand_back(self, run: Run) -> None:
        """See `RunStore`."""
        with self._table.db.writing() as connection:
            self._table.write(connection, run, State.PENDING, run_id=None, progress_message="")

    def lost(self, runs: Collection[Run]) -> Collection[str]:
        """See `RunStore`."""
        statement = sa.select(jobs.c.run_id).where(
            jobs.c.job_id.in_([run.job.job_id for run in runs]), jobs.c.state == State.PROCESSING.value
        )
        with self._table.db.reading() as connection:
            held = set(connection.execute(statement).scalars())
        return {run.run_id for run in runs} - held


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02d}:{int(seconds) % 60:02d}"
