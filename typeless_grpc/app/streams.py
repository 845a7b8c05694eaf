"""Live streams and their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from typeless_grpc.app.databases import jobs_database_url
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.audio.decoders import Decoders
from typeless_grpc.config import Settings
from typeless_grpc.disk import make_directory
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.servicers.stream_messages import StreamConfig, StreamDefaults, UpdateMessages
from typeless_grpc.servicers.streaming import StreamLimits, StreamService
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.durable_log import EVERY_S, DurableDependencies
from typeless_grpc.streaming.durable_store import DurableStore
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.resume import SessionLimits, Sessions
from typeless_grpc.telemetry.context import CallThreads

STORE_THREADS = 4  # for sessions of streams; a write takes milliseconds
STORE_CONNECTIONS = 2  # to the database; as many more while all threads write
SWEEP_S = 30.0
DRAIN_PAUSE_S = 5.0  # nearly all speakers pause within this time for the half second that ends an utterance


@asynccontextmanager
async def open_streams(
    settings: Settings, dependencies: Dependencies, reloads: Reloads, decoders: Decoders
) -> AsyncIterator[StreamService]:
    """Open the service of streams. All sessions end with it."""
    sessions: Sessions[StreamConfig] = Sessions(session_limits(settings), dependencies.clock, dependencies.observer)
    async with AsyncExitStack() as stack:
        durable = await stack.enter_async_context(_durable(settings, reloads))
        stack.push_async_callback(sessions.close)
        stack.push_async_callback(cancelled, asyncio.create_task(sessions.run()))
        reloads.follow(session_limits, sessions.use)
        service = StreamService(
            dependencies=dependencies,
            sessions=sessions,
            defaults=stream_defaults(settings),
            limits=stream_limits(settings),
            code_of=code_of,
            durable=durable,
            decoders=decoders,
        )
        reloads.follow(
            lambda settings: (stream_defaults(settings), stream_limits(settings)), lambda both: service.use(*both)
        )
        yield service


@asynccontextmanager
async def _durable(settings: Settings, reloads: Reloads) -> AsyncIterator[DurableDependencies | None]:
    """Open the store of sessions; None if they are in memory only. SQLAlchemy is imported only if it is needed."""
    if settings.stream_store == "none":
        yield None
        return
    from typeless_grpc.stores.database import Database
    from typeless_grpc.stores.files import Files
    from typeless_grpc.stores.stream_sessions import SqlSessionStore

    make_directory(settings.data_dir / "jobs")  # transcripts are private
    database = Database(jobs_database_url(settings), pool_size=STORE_CONNECTIONS)
    files = Files(
        url=settings.storage_url or str(settings.data_dir / "jobs" / "files"),
        min_free_percent=settings.min_free_disk_percent,
    )
    store, updates = SqlSessionStore(database, files, *_bounds(settings)), UpdateMessages(stream_defaults(settings))
    reloads.follow(_bounds, lambda bounds: store.use(*bounds))
    reloads.follow(lambda settings: settings.min_free_disk_percent, files.use)
    reloads.follow(stream_defaults, updates.use)
    with CallThreads(STORE_THREADS, "sessions") as threads:
        await asyncio.to_thread(database.create_tables)
        sweeping = asyncio.create_task(_swept(store))
        try:
            yield DurableDependencies(store, threads, updates)
        finally:
            await cancelled(sweeping)
            database.close()


async def _swept(store: DurableStore) -> None:
    """Delete expired sessions until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_S)
        with suppress(SourceUnavailable):
            await asyncio.to_thread(store.delete_expired)


def _bounds(settings: Settings) -> tuple[float, int]:
    """Return how long a session lives without a write, and how much audio its owner may store.

    It lives for the resume window, from the last write on.
    """
    return settings.stream_resume_window_s + 2 * EVERY_S, settings.max_upload_bytes_per_caller


def drain_pause_s(settings: Settings) -> float:
    """Return how long a drain waits for a speaker to pause. Most of its time is left for decoding."""
    return min(DRAIN_PAUSE_S, settings.drain_timeout_s / 4)


def session_limits(settings: Settings) -> SessionLimits:
    """Return how many sessions there may be, and how long they are kept."""
    return SessionLimits(
        resume_window_s=settings.stream_resume_window_s,
        max_streams=settings.max_streams,
        max_streams_per_caller=settings.max_streams_per_caller,
        max_kept=settings.max_kept_streams,
    )


def stream_limits(settings: Settings) -> StreamLimits:
    """Return the bounds of streams, which `started` reports to callers."""
    return StreamLimits(
        options=stream_options(settings),
        resume_window_s=settings.stream_resume_window_s,
        drain_pause_s=drain_pause_s(settings),
    )


def stream_options(settings: Settings) -> StreamOptions:
    """Return the bounds of a stream. What its caller chooses is added when the stream opens."""
    return StreamOptions(
        DecodeOptions(),
        EndpointOptions(),
        max_audio_s=settings.max_stream_s,
        max_waiting_bytes=settings.stream_waiting_bytes,
        max_held_s=settings.stream_held_audio_s,
        # A drain must finish all acknowledged audio, of which as much again has not reached the engine yet.
        max_backlog_s=settings.drain_timeout_s / 4,
        max_unread_events=settings.stream_unread_events,
        max_chunks_at_once=settings.stream_file_chunks,
        idle_timeout_s=settings.stream_idle_timeout_s,
    )


def stream_defaults(settings: Settings) -> StreamDefaults:
    """Return the defaults of what callers of streams may choose."""
    return StreamDefaults(
        model=settings.model,
        beam_size=settings.beam_size,
        temperatures=(0.0,),  # only the likeliest text
        interim_interval_s=settings.stream_interim_interval_s,
    )
