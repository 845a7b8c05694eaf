"""Serves the engine of this process to fronts: in a process that a front has started, or on an address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.access.address import is_loopback
from typeless_grpc.access.listening import why_unusable
from typeless_grpc.app.memory import share_heaps
from typeless_grpc.app.metrics import open_metrics
from typeless_grpc.app.models import BuiltRecognizer, build_recognizer
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.app.tls import tls_of
from typeless_grpc.clock import SystemClock
from typeless_grpc.config.values import host_and_port
from typeless_grpc.engine.observer import EngineObservers
from typeless_grpc.engines.messages import MAX_SAMPLES_BYTES
from typeless_grpc.engines.reports import Reports
from typeless_grpc.engines.servicer import EngineServiceOptions, EngineServicer, Served
from typeless_grpc.engines.shared_audio import SharedAudioReader
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics

log = get_logger(__name__)

HEADER_BYTES = 1024 * 1024  # of a request without its samples: the options, with their prompt and replacements
CLEAN_UP_S = 1.0


@dataclass(frozen=True)
class EngineServer:
    """An engine that listens. warming: loads its default model and runs it once. port: 0 for a Unix socket.

    runs_on: where its models run, for people.
    """

    port: int
    runs_on: str
    warming: asyncio.Task[None]


class EngineKeys:
    """The keys that an engine accepts: that of its settings, and the one before, until the next reload."""

    def __init__(self, key: str) -> None:
        """key: "" accepts every front."""
        self._key = self._before = key

    def use(self, key: str) -> None:
        """Take a new value of the setting."""
        self._before, self._key = self._key, key

    def accepted(self) -> Sequence[str]:
        """Return the keys; none if every front is accepted."""
        return tuple({self._key, self._before} - {""}) if self._key else ()


@asynccontextmanager
async def serve_process(reloads: Reloads, socket: str, n_cores: int, shared: int | None) -> AsyncIterator[EngineServer]:
    """Serve the front that has started this process, on a Unix socket. n_cores: what the engine may use.

    shared: the descriptor of the memory that both share; None if there is none.

    Raises SourceUnavailable if the default model is not on this machine.
    """
    share_heaps()
    reports = Reports()
    async with (
        build_recognizer(reloads.settings, reports, reloads, n_cores) as built,
        serve_socket(reloads, socket, _served(built), reports, built.warm, shared) as server,
    ):
        yield server


@asynccontextmanager
async def serve_address(reloads: Reloads) -> AsyncIterator[EngineServer]:
    """Serve fronts on `engine_listen`, with metrics of this process's own.

    Raises InvalidInput without an address, SourceUnavailable if it cannot be used or the model is not here.
    """
    share_heaps()
    reports, metrics = Reports(), Metrics()
    settings, observers = reloads.settings, EngineObservers([reports, metrics.engine])
    async with AsyncExitStack() as stack:
        built = await stack.enter_async_context(build_recognizer(settings, observers, reloads))
        built.show_in(metrics.engine)
        open_metrics(stack, settings, metrics, built.recognizer)
        yield await stack.enter_async_context(serve_port(reloads, _served(built), reports, built.warm))


def _served(built: BuiltRecognizer) -> Served:
    return Served(
        engine=built.recognizer,
        queue=built.scheduler,
        models=built.models,
        known=built.known,
        default_model=built.model,
        runs_on=built.runs_on,
    )


@asynccontextmanager
async def serve_socket(
    reloads: Reloads,
    socket: str,
    served: Served,
    reports: Reports,
    warm: Callable[[], Coroutine[Any, Any, None]],
    shared: int | None = None,
) -> AsyncIterator[EngineServer]:
    """Serve an engine on a Unix socket. reports: what observes the engine. warm: makes it ready, while this listens.

    shared: as in `serve_process`.
    """
    server = _server()
    server.add_insecure_port(f"unix:{socket}")
    servicer = _servicer(reloads, served, reports, shared=None if shared is None else SharedAudioReader(shared))
    async with _running(server, servicer, warm, drain_s=0.0) as warming:
        yield EngineServer(0, served.runs_on, warming)


@asynccontextmanager
async def serve_port(
    reloads: Reloads, served: Served, reports: Reports, warm: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[EngineServer]:
    """Serve an engine on `engine_listen`; on the way out, running calls finish. The rest is as in `serve_socket`.

    Raises InvalidInput without an address, SourceUnavailable if it cannot be used.
    """
    settings = reloads.settings
    if settings.engine_listen is None:
        raise InvalidInput(
            "engine_listen",
            "is not set: it is the address to listen on",
            reason="CONFIG_INVALID",
        )
    host, port = host_and_port(settings.engine_listen)
    tls = tls_of(settings)
    if tls is None and not is_loopback(host):
        log.warning("the engine's key and audio are sent in plain text: set tls_cert_file, or use a private network")
    server = _server(
        # Finds fronts that disappeared silently.
        ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        port = server.add_secure_port(address, tls.credentials()) if tls else server.add_insecure_port(address)
    except RuntimeError as error:
        why = await asyncio.to_thread(why_unusable, host, port) or "another program listens there"
        raise SourceUnavailable(f"Cannot listen on {address}: {why}.", reason="ADDRESS_UNUSABLE") from error
    keys = EngineKeys(settings.engine_key.get_secret_value())
    reloads.follow(lambda settings: settings.engine_key.get_secret_value(), keys.use)
    servicer = _servicer(reloads, served, reports, keys=keys.accepted)
    async with _running(server, servicer, warm, settings.drain_timeout_s) as warming:
        yield EngineServer(port, served.runs_on, warming)


def _servicer(
    reloads: Reloads,
    served: Served,
    reports: Reports,
    *,
    keys: Callable[[], Sequence[str]] = tuple,
    shared: SharedAudioReader | None = None,
) -> EngineServicer:
    options = EngineServiceOptions(keys, lambda: reloads.settings.max_held_audio_s, shared)
    return EngineServicer(served, reports, SystemClock(), options)


@asynccontextmanager
async def _running(
    server: grpc.aio.Server, servicer: EngineServicer, warm: Callable[[], Coroutine[Any, Any, None]], drain_s: float
) -> AsyncIterator[asyncio.Task[None]]:
    """Listen, and make the engine ready meanwhile. drain_s: for running calls to finish."""

    async def become_ready() -> None:
        await warm()
        servicer.ready()

    servicer.register(server)
    await server.start()
    looking = asyncio.create_task(servicer.keep_models_current(), name="installed-models")
    warming = asyncio.create_task(become_ready(), name="warming")
    try:
        yield warming
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await servicer.drain()
        await cancelled(looking)
        await cancelled(warming)
        servicer.close()
        await server.stop(CLEAN_UP_S)


def _server(*options: tuple[str, int]) -> grpc.aio.Server:
    limits = (
        ("grpc.max_receive_message_length", MAX_SAMPLES_BYTES + HEADER_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.lookahead_bytes", 2 * MAX_SAMPLES_BYTES),
    )
    return grpc.aio.server(options=(*limits, *options))
