"""Wires the server around an engine: its services, its interceptors, and their dependencies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from typeless_grpc.access.address import is_loopback
from typeless_grpc.access.usage import UsageReader
from typeless_grpc.app.access import Access, open_access
from typeless_grpc.app.background import Background, admission_options
from typeless_grpc.app.chain import chain
from typeless_grpc.app.compat import POOLS, SPEECH_SERVICES, compat_services
from typeless_grpc.app.console import open_console
from typeless_grpc.app.metrics import open_metrics
from typeless_grpc.app.models import BuiltEngine
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.streams import open_streams
from typeless_grpc.app.tls import tls_of
from typeless_grpc.app.tracing import NO_TRACERS, Tracers
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.config import ENV_PREFIX, Settings, public
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.stream_audio import StreamAudio
from typeless_grpc.health import SERVER, HealthCheck
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.server import Server, ServerOptions, Service
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.servicers.batches import BatchTranscriber
from typeless_grpc.servicers.models import ModelServicer, OnlyDefault, Usable, UsableModels
from typeless_grpc.servicers.recordings import RecordingLimits, RecordingTranscriber
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.servicers.transcription import TranscriptionServicer
from typeless_grpc.sources.checked import NoSources
from typeless_grpc.streaming.dependencies import Dependencies, InterimSlots
from typeless_grpc.streaming.observer import StreamObservers
from typeless_grpc.telemetry.context import CallThreads
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.version import VERSION

log = get_logger(__name__)
WEAK_KEY_CHARACTERS = 20
STREAMS = "/typeless.v1.TranscriptionService/StreamTranscribe"  # during a drain it resumes sessions but opens none

# Jobs are accepted without an engine and wait. A server that cannot transcribe should receive no traffic.
NEEDS_ENGINE = frozenset({SERVER, TranscriptionServicer.NAME, *SPEECH_SERVICES})


@dataclass(frozen=True)
class Listening:
    """A server that listens but does not report SERVING yet, and its ports. console_port: None without a console."""

    server: Server
    port: int
    console_port: int | None = None


@asynccontextmanager
async def listen(
    settings: Settings,
    *,
    engine: Engine,
    detector: VoiceActivityDetector,
    more: Sequence[Service] = (),
    background: Background | None = None,
    clock: Clock | None = None,
    metrics: Metrics | None = None,
    reloads: Reloads | None = None,
    tracers: Tracers = NO_TRACERS,
    usable: Usable | None = None,
    decoders: Decoders = IN_PROCESS,
) -> AsyncIterator[Listening]:
    """Wire services and interceptors around an engine, and listen.

    engine: as callers use it, see `models.finishing`. more: services that need a real model, which this function does
    not. clock: of streams; the system's unless given. metrics: of this process, if the caller has added to them.
    reloads: of the settings. usable: the models that callers may name; the default one unless given.
    decoders: where containers are decoded.
    """
    reloads = reloads or Reloads(settings)
    async with AsyncExitStack() as stack:
        # What calls share.
        decoding = stack.enter_context(CallThreads(settings.decode_threads, "decoding"))
        streaming = stack.enter_context(CallThreads(settings.decode_threads, "streaming"))
        metrics = metrics or Metrics()
        access = await stack.enter_async_context(open_access(settings, metrics, reloads))
        admission = background.admission if background else Admission(admission_options(settings))
        if background is None:
            reloads.follow(admission_options, admission.use)
        drain = DrainInterceptor(decide_themselves=[STREAMS])

        # What the services call.
        recordings = RecordingTranscriber(
            engine=engine,
            admission=admission,
            decoding=decoding,
            limits=recording_limits(settings),
            sources=background.sources if background else NoSources(),
            fetching=background.fetching if background else decoding,
            observer=tracers.audio,
            decoders=decoders,
        )
        dependencies = Dependencies(
            engine=engine,
            detector=detector,
            threads=streaming,
            clock=clock or SystemClock(),
            interim_slots=InterimSlots(settings.stream_interims_at_once),
            audio=StreamAudio(admission),
            observer=StreamObservers([metrics.streams, *tracers.streams]),
        )
        streams = await stack.enter_async_context(open_streams(settings, dependencies, reloads, decoders))
        drain.when_closing(streams.draining, streams.drained)
        batches = BatchTranscriber(recordings, code_of, max_items=settings.max_batch_items)

        # The services.
        info = ServerServicer(_facts(settings, background))
        admin = AdminServicer(registry=access.registry, usage=_usage(access, background), settings=_shown(settings))
        services: list[Service] = [
            TranscriptionServicer(admission=admission, recordings=recordings, batches=batches, streams=streams),
            info,
            admin,
            *more,
            *(background.services if background else ()),
        ]
        services += compat_services(
            settings,
            reloads,
            admission=admission,
            recordings=recordings,
            streams=streams,
            models=usable or OnlyDefault(settings.model),
            jobs=background.jobs if background else None,
        )

        # The server around them.
        options = server_options(settings)
        _warn(settings)
        console = await open_console(stack, settings, metrics)
        tls = tls_of(settings)
        server = Server(
            services=services,
            interceptors=[chain(settings, access, admission, drain, metrics, tracers, options, reloads)],
            drain=drain,
            options=options,
            tls=tls,
            checks=[
                HealthCheck("engine", NEEDS_ENGINE, lambda: engine.stalled_s < reloads.settings.engine_stall_s),
                HealthCheck("sessions of streams", NEEDS_ENGINE, lambda: streams.is_well),
                *access.checks,
                *(background.checks if background else ()),
            ],
            console_socket=console.grpc_socket if console else None,
            pools=POOLS,
        )

        # What a reload changes, and what Prometheus reads.
        reloads.follow(recording_limits, recordings.use)
        reloads.follow(lambda settings: settings.max_batch_items, batches.use)
        reloads.follow(server_options, server.use)
        reloads.follow(lambda settings: settings, lambda settings: info.use(_facts(settings, background)))
        reloads.follow(_shown, admin.use)
        reloads.follow(lambda settings: settings, _warn)
        metrics.watch_admission(lambda: admission.held_s, lambda: reloads.settings.max_held_audio_s)
        metrics.watch_health(lambda: server.statuses)
        if tls is not None:
            metrics.watch_certificate(tls.expires_s)
        metrics.streams.watch(lambda: streams.n_open, lambda: streams.n_sessions)
        open_metrics(stack, settings, metrics, engine)

        port = await server.start()
        stack.push_async_callback(server.stop)
        yield Listening(server=server, port=port, console_port=console.port if console else None)


def usable_models(settings: Settings, engine: BuiltEngine) -> UsableModels:
    """Return the models of an engine that callers may name."""
    return UsableModels(pool=engine.models, catalog=engine.known, default_model=settings.model)


def model_service(settings: Settings, engine: BuiltEngine) -> Service:
    """Return the service that lists, loads and unloads this engine's models."""
    return ModelServicer(pool=engine.models, catalog=engine.known, default_model=settings.model)


def _warn(settings: Settings) -> None:
    for warning in warnings(settings):
        log.warning(warning)


def warnings(settings: Settings) -> Iterator[str]:
    """Yield warnings about the security of these settings."""
    yield from _console_warnings(settings)
    if is_loopback(settings.host):
        return
    if not settings.auth_enabled:
        yield "anyone who reaches this address may call: TYPELESS_AUTH_ENABLED is off"
    elif settings.tls_cert_file is None:
        yield "keys are sent in plain text, unless a proxy in front of this server uses TLS: TLS is off"
    if settings.auth_enabled and not settings.require_auth:
        yield "callers without a key are served as anonymous ones: TYPELESS_REQUIRE_AUTH is off"
    if any(len(secret) < WEAK_KEY_CHARACTERS for secret in (*settings.api_keys, *settings.admin_keys)):
        yield f"a key in the settings is weak: it has fewer than {WEAK_KEY_CHARACTERS} characters"


def _console_warnings(settings: Settings) -> Iterator[str]:
    if settings.console_port is None or is_loopback(settings.console_host):
        return
    if not settings.auth_enabled:
        yield "anyone who reaches the console's address may call: TYPELESS_AUTH_ENABLED is off"
    else:
        yield "the console sends keys in plain text, unless a proxy in front of it uses TLS"
    if settings.tls_client_ca_file is not None:
        yield "the console's callers need no client certificate"


def recording_limits(settings: Settings) -> RecordingLimits:
    """Return the limits of recordings in calls."""
    return RecordingLimits(max_audio_s=settings.max_audio_s)


def server_options(settings: Settings) -> ServerOptions:
    """Return the server's part of the settings."""
    return ServerOptions(
        host=settings.host,
        port=settings.port,
        max_message_bytes=settings.max_message_bytes,
        drain_timeout_s=settings.drain_timeout_s,
        max_calls_per_connection=settings.max_calls_per_connection,
        max_metadata_bytes=settings.max_metadata_bytes,
        max_connections=settings.max_connections,
        min_ping_interval_s=settings.min_ping_interval_s,
        keepalive_s=settings.keepalive_s,
        max_connection_age_s=settings.max_connection_age_s,
        max_connection_grace_s=settings.max_call_s,  # long enough for any call that cannot be resumed
        shares_port=settings.front_processes > 1,
    )


def _facts(settings: Settings, background: Background | None) -> ServerFacts:
    """Return what the server tells clients about itself; without background jobs, nothing of uploads and sources."""
    facts = ServerFacts(
        version=VERSION,
        default_model=settings.model,
        max_message_bytes=settings.max_message_bytes,
        max_audio_s=settings.max_audio_s,
        max_stream_s=settings.max_stream_s,
        stream_idle_timeout_s=settings.stream_idle_timeout_s,
        resume_window_s=settings.stream_resume_window_s,
        max_batch_items=settings.max_batch_items,
        requires_key=settings.auth_enabled and settings.require_auth,
    )
    if background is None:
        return facts
    return replace(facts, max_upload_bytes=settings.max_upload_bytes, uri_schemes=background.sources.schemes)


def _usage(access: Access, background: Background | None) -> UsageReader:
    of_jobs = [background.usage] if background is not None else []
    return UsageReader([access.registry.store, *of_jobs], access.recorder)


def _shown(settings: Settings) -> dict[str, str]:
    """Return what GetConfig answers: settings by their variable, as text, without secrets."""
    shown = {name: value for name, value in public(settings).items() if value is not None}
    return {
        ENV_PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in shown.items()
    }
