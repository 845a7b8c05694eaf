"""Jobs and uploads: kept where the settings say, and run here unless they say otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from typeless_grpc.app.models import finishing
from typeless_grpc.app.tasks import ended
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import Engine
from typeless_grpc.health import Probe, Vital
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.jobs.job import RetryPolicy
from typeless_grpc.jobs.store import RunStore
from typeless_grpc.jobs.worker import Worker, WorkerOptions
from typeless_grpc.server import Service
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.servicers.uploads import UploadServicer
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.dbos_queue import DbosQueue
from typeless_grpc.stores.dbos_worker import DbosWorker, DbosWorkerOptions, new_worker_id
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.identity import StoreIdentity
from typeless_grpc.stores.janitor import Janitor
from typeless_grpc.stores.job_table import JobStoreOptions, JobTable
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.runs import SqlRunStore
from typeless_grpc.stores.sources import CheckedSources, SourceOptions
from typeless_grpc.stores.upkeep import JobUpkeep
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions
from typeless_grpc.telemetry.context import CallThreads

# Calls of the database and of the storage at the same time; each takes milliseconds.
STORE_THREADS = 8
# Recordings fetched from other machines at the same time; a slow one holds up nothing but those behind it.
FETCH_THREADS = 16
STORED = frozenset({JobsServicer.NAME, UploadServicer.NAME})
# Whole uploads read at the same time for their SHA-256; those behind wait, and nobody else does.
HASH_THREADS = 2


@dataclass(frozen=True)
class Background:
    """Jobs and uploads: their services, where audio can be fetched from, and where the jobs are filed.

    vitals: what the services need. admission: counts what running jobs hold.
    """

    services: Sequence[Service]
    sources: CheckedSources
    table: JobTable
    fetching: Executor
    admission: Admission
    vitals: Sequence[Vital] = ()


@asynccontextmanager
async def keep_jobs(
    settings: Settings,
    engine: Engine,
    has_model: Callable[[str], bool] = lambda name: True,
    *,
    is_ready: asyncio.Event | None = None,
) -> AsyncIterator[Background]:
    """Jobs and uploads, kept where the settings say, and run in this process unless they say otherwise.

    has_model: whether jobs may name a model; blocks. is_ready: set when the engine is; jobs begin to run then.
    """
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(CallThreads(STORE_THREADS, "stores"))
        fetching = stack.enter_context(CallThreads(FETCH_THREADS, "fetching"))
        hashing = stack.enter_context(CallThreads(HASH_THREADS, "hashing"))
        (settings.data_dir / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)  # what callers said is private
        database = Database(database_url(settings))
        stack.callback(database.close)
        await asyncio.to_thread(database.create_tables)
        place = settings.storage_url or str(settings.data_dir / "jobs" / "files")
        files = Files(place, settings.min_free_disk_percent)
        identity = StoreIdentity(database, files)
        await asyncio.to_thread(identity.settle)
        uploads = SqlUploadStore(database, files, upload_options(settings))
        sources = CheckedSources(
            uploads,
            SourceOptions(
                settings.audio_uri_prefixes,
                settings.max_upload_bytes,
                settings.audio_uri_timeout_s,
                min_free_percent=settings.min_free_disk_percent,
            ),
        )
        queue = DbosQueue(database)
        stack.callback(queue.close)
        table = JobTable(database, files, queue, job_store_options(settings))
        store, upkeep = SqlJobStore(table), JobUpkeep(table)
        probe = Probe(database.probe)
        probing = asyncio.create_task(probe.run())
        stack.push_async_callback(ended, probing)
        vitals = [Vital("database of jobs", STORED, lambda: probe.answers and not probing.done())]
        admission = Admission(admission_options(settings))
        if settings.max_concurrent_jobs:
            runs, whole = SqlRunStore(table, sources), stack.enter_context(finishing(settings, engine))
            is_alive = await stack.enter_async_context(
                _running(settings, database, runs, upkeep, whole, admission, is_ready)
            )
            vitals.append(Vital("worker of jobs", frozenset({JobsServicer.NAME}), is_alive))
        janitor = Janitor(upkeep, uploads, may_sweep=identity.is_settled)
        janitor.start()
        stack.push_async_callback(asyncio.to_thread, janitor.stop)
        jobs = JobsServicer(store, uploads, sources, executor, fetching, has_model=has_model, code_of=code_of)
        stack.push_async_callback(jobs.close)
        yield Background(
            [jobs, UploadServicer(uploads, executor, hashing)], sources, table, fetching, admission, vitals
        )


@asynccontextmanager
async def _running(
    settings: Settings,
    database: Database,
    runs: RunStore,
    upkeep: JobUpkeep,
    engine: Engine,
    admission: Admission,
    is_ready: asyncio.Event | None,
) -> AsyncIterator[Callable[[], bool]]:
    """A worker in this process, and whether it lives.

    It starts in the background, and again until it succeeds: calls do not wait for it.
    """
    loop = asyncio.get_running_loop()
    worker = Worker(new_worker_id(), runs, engine, loop, SileroDetector(), worker_options(settings), admission)
    runner = DbosWorker(database, upkeep, worker, dbos_worker_options(settings, database))

    async def start() -> None:
        if is_ready is not None:  # DBOS takes seconds of a core to import, which the model's loading needs
            await is_ready.wait()
        await asyncio.to_thread(runner.start)

    starting = asyncio.create_task(start())
    try:
        yield lambda: runner.is_alive and not (starting.done() and starting.exception() is not None)
    finally:
        if is_ready is not None and not is_ready.is_set():
            await ended(starting)  # `runner` was never told to start, and has nothing to stop
        else:
            await asyncio.to_thread(runner.stop)
            await starting


def database_url(settings: Settings) -> str:
    """The database as set, else a file in the data directory."""
    return settings.database_url.get_secret_value() or sqlite_url(settings.data_dir / "jobs" / "jobs.db")


def upload_options(settings: Settings) -> UploadOptions:
    """The upload store's part of the settings."""
    return UploadOptions(
        settings.max_upload_bytes,
        settings.upload_ttl,
        settings.max_unfinished_uploads,
        settings.max_upload_bytes_per_caller,
        settings.keep_job_audio,
    )


def job_store_options(settings: Settings) -> JobStoreOptions:
    """The job store's part of the settings."""
    return JobStoreOptions(
        settings.job_ttl,
        settings.max_pending_jobs,
        settings.worker_timeout_s,
        settings.max_upload_bytes_per_caller,
        settings.keep_job_audio,
    )


def admission_options(settings: Settings) -> AdmissionOptions:
    """The admission's part of the settings."""
    return AdmissionOptions(settings.max_concurrent_calls, settings.max_held_audio_s)


def worker_options(settings: Settings) -> WorkerOptions:
    """A worker's part of the settings."""
    retries = RetryPolicy(settings.job_max_attempts, settings.job_retry_delay_s)
    return WorkerOptions(settings.max_job_audio_s, settings.job_chunk_s, retries)


def dbos_worker_options(settings: Settings, database: Database) -> DbosWorkerOptions:
    """The part of the settings that what drives a worker needs."""
    return DbosWorkerOptions(
        settings.max_concurrent_jobs,
        settings.job_poll_s or (0.05 if database.is_sqlite else 0.25),
        settings.worker_timeout_s,
        settings.data_dir / "jobs" / "workers",
    )
