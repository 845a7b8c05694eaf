"""The life of the gRPC server: listen, say how it is, drain, stop. It is handed its services and interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from typeless_grpc import reflection
from typeless_grpc.access.listening import why_unusable
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.health import Health, Vital
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

HEALTH_S = 1.0  # for telling all health watchers, a few bytes each, that this is the end
HANDSHAKE_MS = 20_000  # from a connection's first byte to its first frame, TLS included
KEEPALIVE_TIMEOUT_MS = 20_000  # for the answer to a keepalive ping
CLEAN_UP_S = 5.0  # for calls that were cut, to put their things away before stores and threads are closed


class Service(Protocol):
    """A servicer that knows its full name in the contract and how to register."""

    NAME: str

    def register(self, server: grpc.aio.Server) -> None: ...


class Door(Protocol):
    """Counts the calls inside, and can be closed to new ones."""

    def close(self) -> None:
        """Refuse every call from now on."""
        ...

    def idle(self) -> Coroutine[Any, Any, None]:
        """Wait until no call runs."""
        ...

    def settled(self) -> Coroutine[Any, Any, None]:
        """Wait until no call runs, and no caller has to come back for what it left here."""
        ...


class Tls(Protocol):
    """Knows the certificates."""

    def credentials(self) -> grpc.ServerCredentials: ...


@dataclass(frozen=True)
class ServerOptions:
    """host, port: where to listen, port 0 takes a free one. max_message_bytes: of a request.

    drain_timeout_s: how long running calls may go on once the server stops. max_calls_per_connection: more wait in
    their client. max_connections: more are closed as they come. min_ping_interval_s: a client that pings more often,
    three times in a row, is cut off. keepalive_s: a connection on which nothing came for so long is asked for a sign of
    life, and closed without one. max_connection_age_s: after that, give or take a tenth, clients are told to connect
    anew; what runs may go on for max_connection_grace_s.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_message_bytes: int = 32 * 1024 * 1024
    drain_timeout_s: float = 30.0
    max_calls_per_connection: int = 1000
    max_metadata_bytes: int = 16 * 1024
    max_connections: int = 1000
    min_ping_interval_s: float = 5.0
    keepalive_s: float = 60.0
    max_connection_age_s: float = 3600.0
    max_connection_grace_s: float = 3600.0

    @property
    def largest_received_bytes(self) -> int:
        """What gRPC itself refuses to receive: an eighth above ours, so that we refuse what is a little too large."""
        return min(self.max_message_bytes + self.max_message_bytes // 8, 2**31 - 1)


class Server:
    """One grpc.aio server; not serving until told so."""

    def __init__(
        self,
        services: Sequence[Service],
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        door: Door,
        options: ServerOptions,
        tls: Tls | None = None,
        vitals: Sequence[Vital] = (),
    ) -> None:
        """interceptors: outermost first, the door among them. tls: None is plain text. vitals: for health checks."""
        self._tls = tls
        self._names = tuple(service.NAME for service in services)
        self._door = door
        self._options = options
        self._health = Health(self._names, vitals)
        self._watching: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(interceptors=list(interceptors), options=_channel_options(options))
        for service in services:
            service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable((*self._names, health.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """Listen, and return the port; health says NOT_SERVING. Raises SourceUnavailable where it cannot listen."""
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._tls.credentials())
        except RuntimeError as error:
            # gRPC does not say why.
            if why := await asyncio.to_thread(why_unusable, host, port):
                raise SourceUnavailable(f"Cannot listen on {address}: {why}.", reason="ADDRESS_UNUSABLE") from error
            raise SourceUnavailable(
                f"Cannot listen on {address}: is another server running there? Choose another with --port.",
                reason="ADDRESS_IN_USE",
            ) from error
        await self._server.start()
        return port

    async def serving(self) -> None:
        """Tell health checks that calls are welcome, for as long as what they need is well."""
        self._health.begin()
        self._watching = self._watching or asyncio.create_task(self._health.run(), name="health")

    async def stop(self) -> None:
        """Drain: say NOT_SERVING, refuse new calls, let running ones finish in time, then cut what is left.

        Streams are ended by their service as the door closes; those whose call broke are waited for, too.

        grpc keeps listening until the running calls are done: told to stop, it would end new ones as CANCELLED, which
        no client tries elsewhere, where the door says UNAVAILABLE. Health watches and reflection stay open as long as
        their clients like, and are not waited for.
        """
        self._door.close()
        if self._watching is not None:
            self._watching.cancel()
        self._health.end()
        await _at_most(self._health.told(), HEALTH_S)
        if not await _at_most(self._door.settled(), self._options.drain_timeout_s):
            log.warning("calls cut at the end of the drain time", drain_timeout_s=self._options.drain_timeout_s)
        await self._server.stop(None)
        if not await _at_most(self._door.idle(), CLEAN_UP_S):
            log.warning("calls still running after they were cut", waited_s=CLEAN_UP_S)


async def _at_most(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    """Whether work ended in time; it is cancelled otherwise."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.largest_received_bytes),
        ("grpc.max_send_message_length", -1),
        # A second server on the same port is an error, not a lottery.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", options.max_calls_per_connection),
        # One limit, not a soft one above which calls are refused by chance.
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        # Peers that went away without a word are found out, also when nothing is to be sent to them.
        ("grpc.keepalive_time_ms", _ms(options.keepalive_s)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        # Old connections move to new servers; gRPC adds the jitter.
        ("grpc.max_connection_age_ms", _ms(options.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(options.max_connection_grace_s)),
        # Clients may ping to keep idle connections through proxies, but not hammer.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(options.min_ping_interval_s)),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _ms(seconds: float) -> int:
    return min(round(seconds * 1000), 2**31 - 1)
