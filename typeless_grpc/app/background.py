"""Opens the stores of jobs and uploads, and runs jobs in this process unless the settings leave that to workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from typeless_grpc.access.usage import UsageSource
from typeless_grpc.app.databases import jobs_database_url
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.app.tracing import NO_TRACERS, Tracers
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.config import Settings
from typeless_grpc.disk import make_directory
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import Engine
from typeless_grpc.health import HealthCheck, Probe
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.jobs.job import RetryPolicy
from typeless_grpc.jobs.observer import JobObservers
from typeless_grpc.jobs.worker import Worker, WorkerOptions
from typeless_grpc.server import Service
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.servicers.uploads import UploadServicer
from typeless_grpc.sources.checked import CheckedSources, SourceOptions
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.dbos.liveness import new_worker_id
from typeless_grpc.stores.dbos.queue import DbosQueue
from typeless_grpc.stores.dbos.runner import DbosOptions, DbosRunner
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.identity import StoreIdentity
from typeless_grpc.stores.janitor import Janitor
from typeless_grpc.stores.job_table import JobStoreOptions, JobTable
from typeless_grpc.stores.job_usage import JobUsageSource
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.stores.postgresql import TIMEOUTS, DatabaseTimeouts
from typeless_grpc.stores.runs import SqlRunStore
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions
from typeless_grpc.telemetry.context import CallThreads
from typeless_grpc.telemetry.job_metrics import JobMetrics, StoredJobs, StoreReader

STORE_THREADS = 8  # for calls of the database and of the storage; each takes milliseconds
FETCH_THREADS = 16  # for recordings fetched from other machines; a slow one delays only those queued behind it
HASH_THREADS = 2  # for the SHA-256 of whole uploads; only uploads wait for them
STATS_EVERY_S = 5.0  # for the metrics of jobs; counting them takes the database milliseconds
STORED = frozenset({JobsServicer.NAME, UploadServicer.NAME})


@dataclass(frozen=True)
class Background:
    """Jobs and uploads.

    jobs: the servicer of jobs. services: all servicers. sources: where audio may be fetched from; fetching: the threads
    for that. table: where jobs are stored. admission: counts the audio of running jobs. usage: of jobs. checks: the
    health of what the services need.
    """

    jobs: JobsServicer
    services: Sequence[Service]
    sources: CheckedSources
    table: JobTable
    fetching: Executor
    admission: Admission
    usage: UsageSource
    checks: Sequence[HealthCheck] = ()


@asynccontextmanager
async def keep_jobs(
    settings: Settings,
    *,
    engine: Engine,
    detector: VoiceActivityDetector,
    has_model: Callable[[str], bool] = lambda name: True,
    is_ready: asyncio.Event | None = None,
    timeouts: DatabaseTimeouts = TIMEOUTS,
    metrics: JobMetrics | None = None,
    reloads: Reloads | None = None,
    tracers: Tracers = NO_TRACERS,
    decoders: Decoders = IN_PROCESS,
) -> AsyncIterator[Background]:
    """Open the stores of jobs and uploads, and run jobs in this process unless max_concurrent_jobs is 0.

    has_model: whether jobs may name a model; blocks. is_ready: set when the engine is ready; jobs wait for it.
    timeouts: of waits for the database. metrics: of this process. reloads: of the settings.
    decoders: where containers are decoded.
    """
    reloads = reloads or Reloads(settings)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(CallThreads(STORE_THREADS, "stores"))
        fetching = stack.enter_context(CallThreads(FETCH_THREADS, "fetching"))
        hashing = stack.enter_context(CallThreads(HASH_THREADS, "hashing"))
        stores = await _open_stores(stack, settings, timeouts, reloads)
        database, table, uploads, sources = stores.database, stores.table, stores.uploads, stores.sources
        maintenance = JobMaintenance(table)
        store = SqlJobStore(table)

        # What observes the stores.
        probe = Probe(database.probe)
        if metrics is not None:
            reader = StoreReader(lambda: StoredJobs(store.stats(), table.quota.total_bytes(), table.files.free_ratio()))
            metrics.watch_store(reader.latest, lambda: probe.answers)
            stack.push_async_callback(cancelled, asyncio.create_task(Probe(reader.refresh, STATS_EVERY_S).run()))
        checks = [await stack.enter_async_context(_checked(probe))]

        # The worker.
        admission = Admission(admission_options(settings))
        reloads.follow(admission_options, admission.use)
        if settings.max_concurrent_jobs:
            worker = Worker(
                worker_id=new_worker_id(),
                store=SqlRunStore(table=table, sources=sources),
                engine=engine,
                loop=asyncio.get_running_loop(),
                detector=detector,
                options=worker_options(settings),
                admission=admission,
                observer=JobObservers([*([metrics] if metrics else []), *tracers.jobs]),
                decoders=decoders,
            )
            reloads.follow(worker_options, worker.use)
            runner = DbosRunner(
                database=database, maintenance=maintenance, worker=worker, options=dbos_options(settings, database)
            )
            checks.append(await stack.enter_async_context(_running(runner, is_ready)))

        # The services, and the maintenance of what they store.
        janitor = Janitor(jobs=maintenance, uploads=uploads, may_sweep=stores.identity.is_settled)
        janitor.start()
        stack.push_async_callback(asyncio.to_thread, janitor.stop)
        jobs = JobsServicer(
            store=store,
            uploads=uploads,
            sources=sources,
            executor=executor,
            fetching=fetching,
            has_model=has_model,
            code_of=code_of,
        )
        stack.push_async_callback(jobs.close)
        yield Background(
            jobs=jobs,
            services=[jobs, UploadServicer(store=uploads, executor=executor, hashing=hashing)],
            sources=sources,
            table=table,
            fetching=fetching,
            admission=admission,
            usage=JobUsageSource(table.usage, executor),
            checks=checks,
        )


@dataclass(frozen=True)
class _Stores:
    """The stores of jobs and uploads. sources: where the audio of jobs may be fetched from."""

    database: Database
    identity: StoreIdentity
    table: JobTable
    uploads: SqlUploadStore
    sources: CheckedSources


async def _open_stores(
    stack: AsyncExitStack, settings: Settings, timeouts: DatabaseTimeouts, reloads: Reloads
) -> _Stores:
    """Open the database and the storage of jobs until the stack closes, and check that they belong together."""
    make_directory(settings.data_dir / "jobs")  # transcripts are private
    database = Database(jobs_database_url(settings), timeouts)
    stack.callback(database.close)
    await asyncio.to_thread(database.create_tables)
    files = Files(
        url=settings.storage_url or str(settings.data_dir / "jobs" / "files"),
        min_free_percent=settings.min_free_disk_percent,
    )
    reloads.follow(lambda settings: settings.min_free_disk_percent, files.use)
    await asyncio.to_thread(files.check_access)
    identity = StoreIdentity(database=database, files=files)
    await asyncio.to_thread(identity.settle)
    uploads = SqlUploadStore(database=database, files=files, options=upload_options(settings))
    reloads.follow(upload_options, uploads.use)
    sources = CheckedSources(uploads=uploads, options=source_options(settings))
    reloads.follow(source_options, sources.use)
    queue = DbosQueue(database)
    stack.callback(queue.close)
    table = JobTable(database=database, files=files, queue=queue, options=job_store_options(settings))
    reloads.follow(job_store_options, table.use)
    return _Stores(database, identity, table, uploads, sources)


@asynccontextmanager
async def _checked(probe: Probe) -> AsyncIterator[HealthCheck]:
    """Probe the database until the end."""
    probing = asyncio.create_task(probe.run())
    try:
        yield HealthCheck("database of jobs", STORED, lambda: probe.answers and not probing.done())
    finally:
        await cancelled(probing)


@asynccontextmanager
async def _running(runner: DbosRunner, is_ready: asyncio.Event | None) -> AsyncIterator[HealthCheck]:
    """Start a worker in the background, which retries until it succeeds; calls do not wait for it."""

    async def start() -> None:
        if is_ready is not None:  # importing DBOS takes seconds of a core, which the loading of the model needs
            await is_ready.wait()
        await asyncio.to_thread(runner.start)

    def is_alive() -> bool:
        return runner.is_alive and not (starting.done() and starting.exception() is not None)

    starting = asyncio.create_task(start())
    try:
        yield HealthCheck("worker of jobs", frozenset({JobsServicer.NAME}), is_alive)
    finally:
        if is_ready is not None and not is_ready.is_set():
            await cancelled(starting)  # `runner` was never started
        else:
            await asyncio.to_thread(runner.stop)
            await starting


def source_options(settings: Settings) -> SourceOptions:
    """Return the settings of audio that may be fetched."""
    return SourceOptions(
        prefixes=settings.audio_uri_prefixes,
        max_bytes=settings.max_upload_bytes,
        timeout_s=settings.audio_uri_timeout_s,
        min_free_percent=settings.min_free_disk_percent,
    )


def upload_options(settings: Settings) -> UploadOptions:
    """Return the upload store's part of the settings."""
    return UploadOptions(
        max_bytes=settings.max_upload_bytes,
        ttl_s=settings.upload_ttl,
        max_unfinished=settings.max_unfinished_uploads,
        max_owner_bytes=settings.max_upload_bytes_per_caller,
        keep_job_audio=settings.keep_job_audio,
    )


def job_store_options(settings: Settings) -> JobStoreOptions:
    """Return the job store's part of the settings."""
    return JobStoreOptions(
        ttl_s=settings.job_ttl,
        max_pending=settings.max_pending_jobs,
        worker_timeout_s=settings.worker_timeout_s,
        max_owner_bytes=settings.max_upload_bytes_per_caller,
        keep_audio=settings.keep_job_audio,
        fetch_timeout_s=settings.audio_uri_timeout_s,
        usage_retention_days=settings.usage_retention_days,
    )


def admission_options(settings: Settings) -> AdmissionOptions:
    """Return admission's part of the settings."""
    return AdmissionOptions(max_calls=settings.max_concurrent_calls, max_audio_s=settings.max_held_audio_s)


def worker_options(settings: Settings) -> WorkerOptions:
    """Return a worker's part of the settings."""
    return WorkerOptions(
        max_audio_s=settings.max_job_audio_s,
        shortest_chunk_s=settings.job_chunk_s,
        retries=RetryPolicy(max_attempts=settings.job_max_attempts, first_delay_s=settings.job_retry_delay_s),
    )


def dbos_options(settings: Settings, database: Database) -> DbosOptions:
    """Return the part of the settings that DBOS needs to drive a worker."""
    return DbosOptions(
        max_jobs=settings.max_concurrent_jobs,
        poll_s=settings.job_poll_s or (0.05 if database.is_sqlite else 0.25),
        worker_timeout_s=settings.worker_timeout_s,
        locks=settings.data_dir / "jobs" / "workers",
    )
