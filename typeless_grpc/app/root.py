"""The server around an engine: services, interceptors, and what they need."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from typeless_grpc.access.address import is_loopback
from typeless_grpc.app.access import open_access
from typeless_grpc.app.background import Background, admission_options
from typeless_grpc.app.models import BuiltEngine, finishing
from typeless_grpc.app.streams import open_streams
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.audio.vad import SileroDetector, VoiceActivityDetector
from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.config import ENV_PREFIX, Settings, public
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.stream_audio import StreamAudio
from typeless_grpc.health import SERVER, Vital
from typeless_grpc.interceptors.arrival import ArrivalInterceptor, ArrivalOptions
from typeless_grpc.interceptors.deadline import DeadlineInterceptor
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.metadata import MetadataInterceptor
from typeless_grpc.interceptors.metrics import MetricsInterceptor
from typeless_grpc.interceptors.open_calls import OpenCallsInterceptor
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.seam import Chain
from typeless_grpc.interceptors.status import StatusInterceptor, code_of
from typeless_grpc.server import Server, ServerOptions, Service
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.servicers.batches import BatchTranscriber
from typeless_grpc.servicers.models import ModelServicer
from typeless_grpc.servicers.recordings import RecordingLimits, RecordingTranscriber
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.servicers.transcription import TranscriptionServicer
from typeless_grpc.stores.sources import NoSources
from typeless_grpc.streaming.machinery import InterimPlaces, Machinery
from typeless_grpc.telemetry.context import CallThreads
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics, MetricsPort
from typeless_grpc.tls import TlsFiles, TlsReloader
from typeless_grpc.version import VERSION

log = get_logger(__name__)
WEAK_KEY_CHARACTERS = 20
STREAMS = "/typeless.v1.TranscriptionService/StreamTranscribe"  # while draining, it resumes sessions and opens none

# Jobs are taken without an engine, and wait. A server that cannot transcribe is of no use to anybody who chooses one.
NEEDS_ENGINE = frozenset({SERVER, TranscriptionServicer.NAME})


@dataclass(frozen=True)
class Listening:
    """A server that listens and is not serving yet, and its port."""

    server: Server
    port: int


@asynccontextmanager
async def listen(
    settings: Settings,
    engine: Engine,
    more: Sequence[Service] = (),
    background: Background | None = None,
    *,
    detector: VoiceActivityDetector | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Listening]:
    """Everything around an engine: services, interceptors, and the server that listens with them.

    Apart from `starting.build`, so that it can stand around an engine that has no model. more: services that need one.
    detector, clock: of streams; the voice activity model and the system's clock unless given.
    """
    async with AsyncExitStack() as stack:
        decoding = stack.enter_context(CallThreads(settings.decode_threads, "decoding"))
        streaming = stack.enter_context(CallThreads(settings.decode_threads, "streaming"))
        metrics = Metrics()
        access = await stack.enter_async_context(open_access(settings, metrics))
        admission = background.admission if background else Admission(admission_options(settings))
        drain = DrainInterceptor(decide_themselves=[STREAMS])
        engine = stack.enter_context(finishing(settings, engine))
        sources: AudioSources = background.sources if background else NoSources()
        fetching = background.fetching if background else decoding
        limits = RecordingLimits(settings.max_audio_s)
        recordings = RecordingTranscriber(engine, admission, decoding, limits, sources, fetching)
        batches = BatchTranscriber(recordings, code_of, max_items=settings.max_batch_items)
        machinery = Machinery(
            engine,
            detector or SileroDetector(),
            streaming,
            clock or SystemClock(),
            InterimPlaces(settings.stream_interims_at_once),
            StreamAudio(admission),
        )
        streams = await stack.enter_async_context(open_streams(settings, machinery))
        drain.when_closing(streams.draining, streams.drained)
        services: list[Service] = [
            TranscriptionServicer(admission, recordings, batches, streams),
            ServerServicer(_facts(settings, background)),
            AdminServicer(access.registry, _shown(settings)),
            *more,
            *(background.services if background else ()),
        ]
        options = server_options(settings)
        max_slow = max(1, settings.max_unfinished_bytes // options.largest_received_bytes)
        interceptors = [
            RequestIdInterceptor(),
            MetricsInterceptor(metrics),
            StatusInterceptor(),
            MetadataInterceptor(settings.max_metadata_entries),
            drain,
            OpenCallsInterceptor(settings.max_open_calls),
            *access.interceptors,
            DeadlineInterceptor(access.rules, settings.max_call_s),
            ArrivalInterceptor(ArrivalOptions(settings.request_arrival_timeout_s, max_slow)),
            MessageSizeInterceptor(settings.max_message_bytes),
        ]
        for warning in warnings(settings):
            log.warning(warning)
        vitals = [
            Vital("engine", NEEDS_ENGINE, lambda: engine.stalled_s < settings.engine_stall_s),
            Vital("sessions of streams", NEEDS_ENGINE, lambda: streams.is_well),
            *access.vitals,
            *(background.vitals if background else ()),
        ]
        server = Server(services, [Chain(interceptors)], drain, options, _tls(settings), vitals)
        if settings.metrics_port is not None:
            stack.callback(MetricsPort.open(metrics, settings.metrics_host, settings.metrics_port).close)
        port = await server.start()
        stack.push_async_callback(server.stop)
        yield Listening(server, port)


def model_service(settings: Settings, engine: BuiltEngine) -> Service:
    """The service that lists, loads and unloads this engine's models."""
    return ModelServicer(engine.models, engine.known, settings.model)


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
        settings.max_connections,
        settings.min_ping_interval_s,
        settings.keepalive_s,
        settings.max_connection_age_s,
        # Long enough for any call that cannot be resumed.
        max_connection_grace_s=settings.max_call_s,
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
