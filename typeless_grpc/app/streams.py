"""Live streams and their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.app.tasks import ended
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.servicers.stream_messages import StreamConfig, StreamDefaults
from typeless_grpc.servicers.streaming import StreamLimits, StreamService
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.machinery import Machinery, StreamOptions
from typeless_grpc.streaming.resume import SessionLimits, Sessions

DRAIN_PAUSE_S = 5.0  # in which nearly all who speak pause for the half second that ends an utterance


@asynccontextmanager
async def open_streams(settings: Settings, machinery: Machinery) -> AsyncIterator[StreamService]:
    """Streams and their sessions; all of them end with it."""
    sessions: Sessions[StreamConfig] = Sessions(session_limits(settings), machinery.clock)
    ticking = asyncio.create_task(sessions.run())
    limits = StreamLimits(stream_options(settings), settings.stream_resume_window_s, drain_pause_s(settings))
    try:
        yield StreamService(machinery, sessions, stream_defaults(settings), limits, code_of)
    finally:
        await ended(ticking)
        await sessions.close()


def drain_pause_s(settings: Settings) -> float:
    """How long a drain waits for a speaker to pause; most of its time is left for what was said."""
    return min(DRAIN_PAUSE_S, settings.drain_timeout_s / 4)


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
        # A drain is to finish what was acknowledged, of which as much again has not come to the engine yet.
        max_backlog_s=settings.drain_timeout_s / 4,
        max_unread_events=settings.stream_unread_events,
        max_pieces_at_once=settings.stream_file_chunks,
        idle_timeout_s=settings.stream_idle_timeout_s,
    )


def stream_defaults(settings: Settings) -> StreamDefaults:
    """What streams are where their callers do not say."""
    return StreamDefaults(
        settings.model,
        settings.beam_size,
        temperatures=(0.0,),  # the likeliest text, and no other
        interim_interval_s=settings.stream_interim_interval_s,
    )
