"""The composition root: settings in, a server out. The only module that names concrete classes."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from typeless_grpc.access.address import is_loopback, networks
from typeless_grpc.access.gate import Failures, Gate
from typeless_grpc.access.keys import ApiKey, KeyRing, settings_key
from typeless_grpc.access.methods import Group, Rules, rules
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit
from typeless_grpc.access.rate_limit import BucketStore, Limiter
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.store import AccessStore
from typeless_grpc.access.tokens import SigningKeys, TokenOptions, TokenVerifier, jwks
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.audio.vad import SpeechDetector
from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.config import ENV_PREFIX, Settings, public
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.catalog import Catalog, is_model_directory
from typeless_grpc.engine.channels import ChannelEngine
from typeless_grpc.engine.hearing import RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.interface import DecodeOptions, Engine
from typeless_grpc.engine.models import ModelPool, PoolOptions
from typeless_grpc.engine.recognizer import Recognizer
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.whisper import TEMPERATURES, Device, HuggingFaceHub, WhisperModel, choose_device
from typeless_grpc.engine.window import POLICIES
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.interceptors.auth import AuthInterceptor
from typeless_grpc.interceptors.deadline import DeadlineInterceptor
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.metadata import MetadataInterceptor
from typeless_grpc.interceptors.metrics import MetricsInterceptor
from typeless_grpc.interceptors.open_calls import OpenCallsInterceptor
from typeless_grpc.interceptors.rate_limit import RateLimitInterceptor
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.seam import Chain, Interceptor
from typeless_grpc.interceptors.status import StatusInterceptor, code_of
from typeless_grpc.jobs.job import RetryPolicy
from typeless_grpc.jobs.store import RunStore
from typeless_grpc.jobs.worker import Worker, WorkerOptions
from typeless_grpc.server import Server, ServerOptions, Service
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.servicers.batches import BatchTranscriber
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.servicers.models import ModelServicer
from typeless_grpc.servicers.recordings import RecordingLimits, RecordingTranscriber
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.servicers.stream_messages import StreamConfig, StreamDefaults
from typeless_grpc.servicers.streaming import StreamLimits, StreamService
from typeless_grpc.servicers.transcription import TranscriptionServicer
from typeless_grpc.servicers.uploads import UploadServicer
from typeless_grpc.stores.buckets import FallbackBuckets, MemoryBuckets, RedisBuckets, RefusingBuckets
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.dbos_queue import DbosQueue
from typeless_grpc.stores.dbos_worker import DbosWorker, DbosWorkerOptions, new_worker_id
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.janitor import Janitor
from typeless_grpc.stores.job_table import JobStoreOptions, JobTable
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.memory_access import MemoryAccessStore
from typeless_grpc.stores.runs import SqlRunStore
from typeless_grpc.stores.sources import CheckedSources, NoSources, SourceOptions
from typeless_grpc.stores.upkeep import JobUpkeep
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.machinery import InterimPlaces, Machinery, SpeechProbability, StreamOptions
from typeless_grpc.streaming.resume import SessionLimits, Sessions
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics, MetricsPort
from typeless_grpc.telemetry.reachability import Reachability
from typeless_grpc.text import profanity
from typeless_grpc.text.finishing import FinishingEngine
from typeless_grpc.tls import TlsFiles, TlsReloader
from typeless_grpc.version import VERSION

log = get_logger(__name__)

LOADS_SIDE_BY_SIDE = 4
# Calls of the database and of the storage at the same time; each takes milliseconds.
STORE_THREADS = 8
# Recordings fetched from other machines at the same time; a slow one holds up nothing but those behind it.
FETCH_THREADS = 16
WEAK_KEY_CHARACTERS = 20
JWKS_TIMEOUT_S = 5.0  # for the identity provider to send its keys, a few kilobytes
FINISHED_SIDE_BY_SIDE = 2  # transcripts whose text is worked on; Python does it, so more would only wait for each other


@dataclass(frozen=True)
class Listening:
    """A server that listens and is not serving yet, and its port."""

    server: Server
    port: int


@dataclass(frozen=True)
class App(Listening):
    """A server with its engine, not yet warm. model: name of the default model."""

    model: str
    device: Device
    models: ModelPool[WhisperModel]

    async def warm(self) -> None:
        """Load the default model, run it once, and report SERVING."""
        model = await self.models.load(self.model)
        await asyncio.to_thread(model.warm_up)
        await self.server.serving()


def catalog(settings: Settings) -> Catalog:
    """The catalogue of models these settings describe; a default model given as a path is in it by that path."""
    directories = dict(settings.model_dirs)
    if is_path(settings.model):
        directories[settings.model] = Path(settings.model).expanduser()
    return Catalog(settings.data_dir, HuggingFaceHub(), directories, download=settings.model_download)


def is_path(model: str) -> bool:
    """Whether a model is named by its directory."""
    return "/" in model or is_model_directory(Path(model))


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[App]:
    """Wire everything and listen; what was opened last is closed first on the way out."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(build_engine(settings))
        background = await stack.enter_async_context(keep_jobs(settings, engine.recognizer, engine.has_model))
        manage = ModelServicer(engine.models, engine.known, settings.model)
        listening = await stack.enter_async_context(listen(settings, engine.recognizer, [manage], background))
        yield App(listening.server, listening.port, settings.model, engine.device, engine.models)


@asynccontextmanager
async def build_worker(settings: Settings) -> AsyncIterator[None]:
    """Run jobs with an engine of their own, and take no calls."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(build_engine(settings))
        model = await engine.models.load(settings.model)
        await asyncio.to_thread(model.warm_up)
        await stack.enter_async_context(keep_jobs(settings, engine.recognizer, engine.has_model))
        yield


@dataclass(frozen=True)
class BuiltEngine:
    """The engine, and what it is made of."""

    recognizer: Recognizer
    models: ModelPool[WhisperModel]
    known: Catalog
    device: Device

    def has_model(self, name: str) -> bool:
        """Whether calls can name this model."""
        return self.known.find(name) is not None


@asynccontextmanager
async def build_engine(settings: Settings) -> AsyncIterator[BuiltEngine]:
    """The engine over real models. Raises SourceUnavailable where the default one is not on this machine."""
    async with AsyncExitStack() as stack:
        inference = stack.enter_context(ThreadPoolExecutor(settings.engine_workers, "inference"))
        detecting = stack.enter_context(ThreadPoolExecutor(settings.decode_threads, "detecting"))
        loading = stack.enter_context(ThreadPoolExecutor(LOADS_SIDE_BY_SIDE, "loading"))
        device = choose_device(settings.device, settings.compute_type)
        load = functools.partial(
            WhisperModel, device=device, n_threads=n_threads(settings), n_workers=settings.engine_workers
        )
        known = catalog(settings)
        pool = PoolOptions(settings.model, settings.max_model_memory_bytes)
        models = ModelPool(known, load, loading, SystemClock(), pool)
        if await asyncio.to_thread(known.find, settings.model) is None:
            raise SourceUnavailable(
                f"Model '{settings.model}' is not on this machine: typeless models pull {settings.model}",
                reason="MODEL_UNAVAILABLE",
            )
        scheduler: WindowScheduler = Scheduler(run_batch, scheduler_options(settings), SystemClock(), inference)
        await scheduler.start()
        stack.push_async_callback(scheduler.stop)
        options = RecognizerOptions(settings.model, settings.beam_size, POLICIES[settings.encoder_window])
        yield BuiltEngine(Recognizer(models, SpeechDetector(), scheduler, options, detecting), models, known, device)


@dataclass(frozen=True)
class Background:
    """Jobs and uploads: their services, where audio can be fetched from, and where the jobs are filed."""

    services: Sequence[Service]
    sources: CheckedSources
    table: JobTable
    fetching: Executor


@asynccontextmanager
async def keep_jobs(
    settings: Settings, engine: Engine, has_model: Callable[[str], bool] = lambda name: True
) -> AsyncIterator[Background]:
    """Jobs and uploads, kept where the settings say, and run in this process unless they say otherwise.

    has_model: whether jobs may name a model; blocks.
    """
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(STORE_THREADS, "stores"))
        fetching = stack.enter_context(ThreadPoolExecutor(FETCH_THREADS, "fetching"))
        (settings.data_dir / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)  # what callers said is private
        database = Database(database_url(settings))
        stack.callback(database.close)
        await asyncio.to_thread(database.create_tables)
        files = Files(settings.storage_url or str(settings.data_dir / "jobs" / "files"))
        uploads = SqlUploadStore(
            database,
            files,
            UploadOptions(settings.max_upload_bytes, settings.upload_ttl, settings.max_unfinished_uploads),
        )
        sources = CheckedSources(
            uploads,
            SourceOptions(settings.audio_uri_prefixes, settings.max_upload_bytes, settings.audio_uri_timeout_s),
        )
        queue = DbosQueue(database)
        stack.callback(queue.close)
        table = JobTable(database, files, queue, job_store_options(settings))
        store, upkeep = SqlJobStore(table), JobUpkeep(table)
        if settings.max_concurrent_jobs:
            runs, whole = SqlRunStore(table, sources), stack.enter_context(finishing(settings, engine))
            await stack.enter_async_context(_running(settings, database, runs, upkeep, whole))
        janitor = Janitor(upkeep, uploads)
        janitor.start()
        stack.push_async_callback(asyncio.to_thread, janitor.stop)
        jobs = JobsServicer(store, sources, executor, fetching, has_model=has_model, code_of=code_of)
        stack.push_async_callback(jobs.close)
        yield Background([jobs, UploadServicer(uploads, executor)], sources, table, fetching)


@asynccontextmanager
async def _running(
    settings: Settings, database: Database, runs: RunStore, upkeep: JobUpkeep, engine: Engine
) -> AsyncIterator[None]:
    """A worker in this process. It starts in the background, and again until it succeeds: calls do not wait for it."""
    loop = asyncio.get_running_loop()
    worker = Worker(new_worker_id(), runs, engine, loop, SpeechDetector(), worker_options(settings))
    runner = DbosWorker(database, upkeep, worker, dbos_worker_options(settings, database))
    starting = asyncio.create_task(asyncio.to_thread(runner.start))
    try:
        yield
    finally:
        await asyncio.to_thread(runner.stop)
        await starting


@asynccontextmanager
async def listen(
    settings: Settings,
    engine: Engine,
    more: Sequence[Service] = (),
    background: Background | None = None,
    *,
    speech: SpeechProbability | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Listening]:
    """Everything around an engine: services, interceptors, and the server that listens with them.

    Apart from `build`, so that it can stand around an engine that has no model. more: services that need one. speech,
    clock: of streams; the voice activity model and the system's clock unless given.
    """
    async with AsyncExitStack() as stack:
        decoding = stack.enter_context(ThreadPoolExecutor(settings.decode_threads, "decoding"))
        metrics = Metrics()
        access = await stack.enter_async_context(open_access(settings, metrics))
        admission = Admission(AdmissionOptions(settings.max_concurrent_calls, settings.max_held_audio_s))
        drain = DrainInterceptor()
        engine = stack.enter_context(finishing(settings, engine))
        sources: AudioSources = background.sources if background else NoSources()
        fetching = background.fetching if background else decoding
        limits = RecordingLimits(settings.max_audio_s)
        recordings = RecordingTranscriber(engine, admission, decoding, limits, sources, fetching)
        batches = BatchTranscriber(recordings, code_of, max_items=settings.max_batch_items)
        machinery = Machinery(
            engine,
            speech or SpeechDetector(),
            decoding,
            clock or SystemClock(),
            InterimPlaces(settings.stream_interims_at_once),
        )
        streams = await stack.enter_async_context(open_streams(settings, machinery))
        drain.when_closing(streams.draining)
        services: list[Service] = [
            TranscriptionServicer(admission, recordings, batches, streams),
            ServerServicer(_facts(settings, background)),
            AdminServicer(access.registry, _shown(settings)),
            *more,
            *(background.services if background else ()),
        ]
        interceptors = [
            RequestIdInterceptor(),
            MetricsInterceptor(metrics),
            StatusInterceptor(),
            MetadataInterceptor(settings.max_metadata_entries),
            drain,
            OpenCallsInterceptor(settings.max_open_calls),
            *access.interceptors,
            DeadlineInterceptor(access.rules, settings.max_call_s),
            MessageSizeInterceptor(settings.max_message_bytes),
        ]
        for warning in warnings(settings):
            log.warning(warning)
        server = Server(services, [Chain(interceptors)], drain, server_options(settings), _tls(settings))
        if settings.metrics_port is not None:
            stack.callback(MetricsPort.open(metrics, settings.metrics_host, settings.metrics_port).close)
        port = await server.start()
        stack.push_async_callback(server.stop)
        yield Listening(server, port)


@contextmanager
def finishing(settings: Settings, engine: Engine) -> Iterator[Engine]:
    """The engine for recordings as callers want them: several channels, and the last touches to the text."""
    with ThreadPoolExecutor(FINISHED_SIDE_BY_SIDE, "finishing") as threads:
        yield FinishingEngine(ChannelEngine(engine), profanity.load(settings.profanity_file), threads)


def database_url(settings: Settings) -> str:
    """The database as set, else a file in the data directory."""
    return settings.database_url.get_secret_value() or sqlite_url(settings.data_dir / "jobs" / "jobs.db")


def job_store_options(settings: Settings) -> JobStoreOptions:
    """The job store's part of the settings."""
    return JobStoreOptions(settings.job_ttl, settings.max_pending_jobs, settings.worker_timeout_s)


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


@asynccontextmanager
async def open_streams(settings: Settings, machinery: Machinery) -> AsyncIterator[StreamService]:
    """Streams and their sessions; all of them end with it."""
    sessions: Sessions[StreamConfig] = Sessions(session_limits(settings), machinery.clock)
    ticking = asyncio.create_task(sessions.run())
    limits = StreamLimits(stream_options(settings), settings.stream_resume_window_s)
    try:
        yield StreamService(machinery, sessions, stream_defaults(settings), limits, code_of)
    finally:
        await _ended(ticking)
        await sessions.close()


def session_limits(settings: Settings) -> SessionLimits:
    """How many streams, and how long they are kept."""
    return SessionLimits(
        settings.stream_resume_window_s,
        settings.max_streams,
        settings.max_streams_per_caller,
        settings.max_kept_streams,
    )


def stream_options(settings: Settings) -> StreamOptions:
    """The bounds of a stream; what its caller chooses is filled in when it is opened."""
    return StreamOptions(
        DecodeOptions(),
        EndpointOptions(),
        max_audio_s=settings.max_stream_s,
        max_waiting_bytes=settings.stream_waiting_bytes,
        max_held_s=settings.stream_held_audio_s,
        max_unread_events=settings.stream_unread_events,
        max_pieces_at_once=settings.stream_file_windows,
        idle_timeout_s=settings.stream_idle_timeout_s,
    )


def stream_defaults(settings: Settings) -> StreamDefaults:
    """What streams are where their callers do not say."""
    return StreamDefaults(
        settings.model, settings.beam_size, TEMPERATURES, interim_interval_s=settings.stream_interim_interval_s
    )


def scheduler_options(settings: Settings) -> SchedulerOptions:
    """The scheduler's part of the settings."""
    return SchedulerOptions(max_batch=settings.max_batch, n_workers=settings.engine_workers)


def n_threads(settings: Settings) -> int:
    """Threads for one inference: as set, else the cores shared among the workers."""
    return settings.cpu_threads or max(1, (os.cpu_count() or 4) // settings.engine_workers)


def warnings(settings: Settings) -> Iterator[str]:
    """What an operator should know about these settings before somebody else finds out."""
    if is_loopback(settings.host):
        return
    if not settings.auth_enabled:
        yield "anyone who reaches this address may call: TYPELESS_AUTH_ENABLED is off"
    elif settings.tls_cert_file is None:
        yield "keys can be read on their way here: TLS is off, unless a proxy in front has it"
    if settings.auth_enabled and not settings.require_auth:
        yield "callers without a key are served, as anonymous ones: TYPELESS_REQUIRE_AUTH is off"
    if any(len(secret) < WEAK_KEY_CHARACTERS for secret in (*settings.api_keys, *settings.admin_keys)):
        yield f"a key of the settings has fewer than {WEAK_KEY_CHARACTERS} characters, and could be guessed"


def server_options(settings: Settings) -> ServerOptions:
    """The server's part of the settings."""
    return ServerOptions(
        settings.host,
        settings.port,
        settings.max_message_bytes,
        settings.drain_timeout_s,
        settings.max_calls_per_connection,
        settings.max_metadata_bytes,
        settings.min_ping_interval_s,
    )


def _facts(settings: Settings, background: Background | None) -> ServerFacts:
    requires_key = settings.auth_enabled and settings.require_auth
    facts = ServerFacts(
        VERSION,
        settings.model,
        settings.max_message_bytes,
        settings.max_audio_s,
        settings.max_stream_s,
        settings.stream_idle_timeout_s,
        settings.stream_resume_window_s,
        settings.max_batch_items,
        requires_key,
    )
    if background is None:
        return facts
    return replace(facts, max_upload_bytes=settings.max_upload_bytes, uri_schemes=background.sources.schemes)


def _shown(settings: Settings) -> dict[str, str]:
    """What GetConfig says: settings by their variable, as text, secrets left out."""
    shown = {name: value for name, value in public(settings).items() if value is not None}
    return {
        ENV_PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in shown.items()
    }


def _tls(settings: Settings) -> TlsReloader | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return TlsReloader(TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file))


@dataclass(frozen=True)
class Access:
    """Who may call, and how much. interceptors: those that see to it, in order."""

    registry: Registry
    rules: Rules
    interceptors: Sequence[Interceptor]


@asynccontextmanager
async def open_access(settings: Settings, metrics: Metrics) -> AsyncIterator[Access]:
    """Keys, tokens and limits as the settings want them."""
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        known = rules(settings.open_services)
        quotas = Quotas(limits(settings), anonymous_percent=_anonymous_percent(settings))
        # While keys are off nobody can change anything, and there is nothing to keep.
        registry = _registry(settings, MemoryAccessStore(), quotas)
        if settings.auth_enabled:
            registry = await stack.enter_async_context(open_registry(settings, quotas))
        tokens = None
        if settings.auth_enabled:
            await registry.load(settings_keys(settings))
            stack.push_async_callback(registry.flush)
            reached = Reachability("store of keys", metrics.key_store_up)
            following = asyncio.create_task(registry.follow(reached.report))
            stack.push_async_callback(_ended, following)
            if settings.jwt_issuer:
                threads = stack.enter_context(ThreadPoolExecutor(1, "token-keys"))
                tokens = _tokens(settings, threads, clock)
        wrong_keys = Quota.parse(settings.rate_limit_wrong_keys) if settings.rate_limit_enabled else None
        failures = Failures(MemoryBuckets(settings.rate_limit_max_buckets), wrong_keys, clock)
        gate = Gate(registry if settings.auth_enabled else None, tokens, failures, is_required=settings.require_auth)
        ring = registry.ring if settings.auth_enabled else None
        interceptors: list[Interceptor] = [
            AuthInterceptor(gate, ring, known, networks(settings.trusted_proxies), metrics)
        ]
        if settings.rate_limit_enabled:
            buckets = await stack.enter_async_context(_buckets(settings, clock, metrics))
            limiter = Limiter(quotas, buckets, long_audio_s=settings.long_audio_s)
            interceptors.append(RateLimitInterceptor(limiter, known, metrics))
        yield Access(registry, known, interceptors)


@asynccontextmanager
async def open_registry(settings: Settings, quotas: Quotas | None = None) -> AsyncIterator[Registry]:
    """Keys and limits with the store that the settings name. Raises SourceUnavailable if it cannot be reached."""
    from typeless_grpc.stores import sql_access

    url = settings.database_url.get_secret_value()
    if not url:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        url = sql_access.sqlite_url(settings.data_dir / "access.sqlite3")
    store = sql_access.SqlAccessStore(url, time.time)
    try:
        await store.open()
        yield _registry(settings, store, quotas or Quotas([]))
    finally:
        await store.close()


def _registry(settings: Settings, store: AccessStore, quotas: Quotas) -> Registry:
    ring = KeyRing({key.digest: key.role for key in settings_keys(settings)})
    return Registry(store, ring, quotas, RegistryOptions(settings.max_api_keys, settings.key_refresh_s))


@asynccontextmanager
async def _buckets(settings: Settings, clock: Clock, metrics: Metrics) -> AsyncIterator[BucketStore]:
    local = MemoryBuckets(settings.rate_limit_max_buckets)
    if not (url := settings.redis_url.get_secret_value()):
        yield local
        return
    shared = RedisBuckets(url, timeout_s=settings.redis_timeout_s)
    try:
        yield FallbackBuckets(shared, local if settings.redis_away == "local" else RefusingBuckets(), clock, metrics)
    finally:
        await shared.close()


def settings_keys(settings: Settings) -> list[ApiKey]:
    """The keys that stand in the settings."""
    roles = ((settings.api_keys, Role.USER), (settings.admin_keys, Role.ADMIN))
    return [settings_key(secret.get_secret_value(), role, time.time()) for secrets, role in roles for secret in secrets]


def limits(settings: Settings) -> list[Limit]:
    """The limits that stand in the settings."""
    calls = {group: Quota.parse(getattr(settings, f"rate_limit_{group.value}")) for group in Group}
    found = [Limit(group, Unit.CALLS, quota) for group, quota in calls.items() if quota is not None]
    if (audio := Quota.parse(settings.rate_limit_audio)) is not None:
        found += [Limit(g, Unit.AUDIO_SECONDS, audio) for g in (Group.TRANSCRIBE, Group.BATCH, Group.STREAM)]
    for group in Group:
        n_open = settings.max_streams_per_caller if group is Group.STREAM else settings.max_calls_per_caller
        if group is not Group.LONG:
            found.append(Limit(group, Unit.CONCURRENT_CALLS, Quota.at_once(n_open)))
    return found


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _anonymous_percent(settings: Settings) -> int:
    """Where keys are off, nobody has one, and the limits are meant for everyone."""
    return settings.rate_limit_anonymous_percent if settings.auth_enabled else 100


def _tokens(settings: Settings, threads: ThreadPoolExecutor, clock: Clock) -> TokenVerifier:
    options = TokenOptions(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_algorithms,
        settings.jwt_roles_claim,
        settings.jwt_user_role,
        settings.jwt_admin_role,
    )
    fetch = jwks(settings.jwt_jwks_url, timeout_s=JWKS_TIMEOUT_S)
    return TokenVerifier(SigningKeys(fetch, threads, clock, options), options)
