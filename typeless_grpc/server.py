"""The life of the gRPC server: listen, report health, drain, stop. Services and interceptors are given to it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2_grpc

from typeless_grpc import reflection
from typeless_grpc.access.listening import cannot_listen, why_unusable
from typeless_grpc.clock import ends_within
from typeless_grpc.health import Health, HealthCheck
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

WATCH_S = 1.0  # interval of checks whether gRPC has ended
NOTIFY_S = 1.0  # to send all health watchers a few bytes each
HANDSHAKE_MS = 20_000  # from a connection's first byte to its first frame, TLS included
KEEPALIVE_TIMEOUT_MS = 20_000  # for the answer to a keepalive ping
# For a client to acknowledge our settings. Until then, gRPC accepts more headers than `max_metadata_bytes`.
SETTINGS_TIMEOUT_MS = 20_000
# Calls that have arrived, and that the event loop has not begun. gRPC's default is 1000: beyond it, it cancels calls of
# any client at random, so that a client which opens and resets calls would end those of others.
MAX_PENDING_CALLS = 10_000
CLEAN_UP_S = 5.0  # for cancelled calls to clean up before stores and threads are closed


class Service(Protocol):
    """A servicer that knows its full name in the contract and how to register."""

    NAME: str

    def register(self, server: grpc.aio.Server) -> None: ...


class Drain(Protocol):
    """Counts running calls, and can refuse new ones; `interceptors.drain` is the real one."""

    def close(self) -> None:
        """Refuse every call from now on."""
        ...

    def idle(self) -> Coroutine[Any, Any, None]:
        """Wait until no call runs."""
        ...

    def settled(self) -> Coroutine[Any, Any, None]:
        """Wait until no call runs and no session waits for its caller to resume it."""
        ...


class Certificates(Protocol):
    """Has the certificates; `tls.TlsReloader` is the real one."""

    def credentials(self) -> grpc.ServerCredentials: ...


@dataclass(frozen=True)
class ServerOptions:
    """The settings of the same names, and two more.

    max_connection_grace_s: how long calls may outlive an old connection. shares_port: with other front processes.
    """

    host: str
    port: int
    max_message_bytes: int
    drain_timeout_s: float
    max_calls_per_connection: int
    max_metadata_bytes: int
    max_connections: int
    min_ping_interval_s: float
    keepalive_s: float
    max_connection_age_s: float
    max_connection_grace_s: float
    shares_port: bool = False

    @property
    def largest_received_bytes(self) -> int:
        """The limit that gRPC enforces: an eighth above ours, so that we can refuse slightly larger ones ourselves."""
        return min(self.max_message_bytes + self.max_message_bytes // 8, 2**31 - 1)


class Server:
    """One grpc.aio server. It reports NOT_SERVING until `serving` is called."""

    def __init__(
        self,
        services: Sequence[Service],
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        drain: Drain,
        options: ServerOptions,
        tls: Certificates | None = None,
        checks: Sequence[HealthCheck] = (),
        console_socket: Path | None = None,
        pools: Sequence[DescriptorPool] = (),
    ) -> None:
        """interceptors: outermost first, drain among them. tls: None for plain text.

        console_socket: where to listen for the console, without TLS; None if there is no console.
        pools: with the descriptors of services that are not in the default pool, for reflection.
        """
        self._tls = tls
        self._console_socket = console_socket
        self._names = tuple(service.NAME for service in services)
        self._drain = drain
        self._options = options
        self._health = Health(self._names, checks)
        self._updating: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(interceptors=list(interceptors), options=_channel_options(options))
        for service in services:
            service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable((*self._names, health.SERVICE_NAME), self._server, pools)

    @property
    def statuses(self) -> Mapping[str, bool]:
        """Whether each service reports SERVING, by name; "" for the server as a whole."""
        return self._health.statuses

    def use(self, options: ServerOptions) -> None:
        """Use these options for a drain. The others cannot change after the start."""
        self._options = options

    async def start(self) -> int:
        """Listen and return the port. Raises SourceUnavailable if the address cannot be used."""
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._tls.credentials())
        except RuntimeError as error:
            # gRPC's error does not contain the cause.
            raise cannot_listen(address, await asyncio.to_thread(why_unusable, host, port)) from error
        if self._console_socket is not None:
            self._server.add_insecure_port(f"unix:{self._console_socket}")
        await self._server.start()
        return port

    async def serving(self) -> None:
        """Report SERVING from now on, while the health checks pass."""
        self._health.begin()
        self._updating = self._updating or asyncio.create_task(self._health.run(), name="health")

    async def failed(self) -> None:
        """Wait until gRPC ends the server by itself, and raise its error. Returns once `stop` has stopped it."""
        while await self._server.wait_for_termination(timeout=WATCH_S):
            pass

    async def stop(self) -> None:
        """Drain: report NOT_SERVING, refuse new calls, wait for running ones up to the drain timeout, cancel the rest.

        Streams are ended by their service when the drain begins. Sessions that wait to be resumed are waited for too;
        health watches and reflection are not, because they stay open as long as their clients like.

        grpc itself is stopped only when running calls are done: it would end new calls as CANCELLED, which clients do
        not retry elsewhere, while our refusal is UNAVAILABLE.
        """
        self._drain.close()
        if self._updating is not None:
            self._updating.cancel()
        self._health.end()
        await ends_within(self._health.notified(), NOTIFY_S)
        if not await ends_within(self._drain.settled(), self._options.drain_timeout_s):
            log.warning("drain timeout: remaining calls are cancelled", drain_timeout_s=self._options.drain_timeout_s)
        await self._server.stop(None)
        if not await ends_within(self._drain.idle(), CLEAN_UP_S):
            log.warning("cancelled calls still run", waited_s=CLEAN_UP_S)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.largest_received_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise, a second server on the same port is an error, not a lottery.
        ("grpc.so_reuseport", int(options.shares_port)),
        ("grpc.max_concurrent_streams", options.max_calls_per_connection),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # Both limits are equal: between them, gRPC refuses calls at random.
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", SETTINGS_TIMEOUT_MS),
        # Finds peers that disappeared silently, even if there is nothing to send to them.
        ("grpc.keepalive_time_ms", _ms(options.keepalive_s)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients of old connections move to new servers; gRPC adds the jitter.
        ("grpc.max_connection_age_ms", _ms(options.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(options.max_connection_grace_s)),
        # Clients may ping to keep idle connections open through proxies, but not flood the server.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(options.min_ping_interval_s)),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _ms(seconds: float) -> int:
    return min(round(seconds * 1000), 2**31 - 1)
