"""The console's TCP port, with uvicorn in this process's event loop; and its way to gRPC, a private Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from typeless_grpc.access.address import Network
from typeless_grpc.access.listening import why_unusable
from typeless_grpc.console.activity import Activity
from typeless_grpc.console.bridge import Bridge, BridgeOptions
from typeless_grpc.console.peers import Peers
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

HEAD_S = 20.0  # from a connection's start, or the end of its last answer, to the complete head of a request
UNREAD_S = 60.0  # for a peer to read, once its buffers are full
LAST_WORDS_S = 5.0  # for the last answers of gRPC to reach the sockets, once gRPC has stopped
CLOSE_S = 2.0  # for connections to close, after that
BACKLOG = 128
MAX_SOCKET_MESSAGE_BYTES = 1024 * 1024
SILENT_MS = 60_000  # time without an answer of the peer's TCP after which the connection counts as broken
PING_S = 20.0


@dataclass(frozen=True)
class ConsoleOptions:
    """Where to listen. max_connections: further ones are closed as they arrive. proxies: those that are trusted."""

    host: str
    port: int
    max_connections: int
    proxies: Sequence[Network]


@dataclass(frozen=True)
class Console:
    """A console that listens. grpc_socket: gRPC has to listen there, too. port: its TCP port."""

    grpc_socket: Path
    port: int


@asynccontextmanager
async def open_console(
    options: ConsoleOptions, bridge_options: BridgeOptions, activity: Activity
) -> AsyncIterator[Console]:
    """Serve the console until the block ends, which must be after gRPC has stopped: open calls then get their ends.

    Raises SourceUnavailable if the address cannot be used.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(await _listen(options.host, options.port)))
        grpc_socket = stack.enter_context(_private_directory()) / "grpc"
        threads = stack.enter_context(ThreadPoolExecutor(2, "console"))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{grpc_socket}", _CHANNEL_OPTIONS))
        peers = Peers(options.proxies)
        bridge = Bridge(channel, threads, peers, bridge_options, activity)
        server = _EmbeddedServer(_uvicorn_config(bridge, peers, options.max_connections))
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="console")
        await _first(serving, server.is_listening.wait())
        try:
            yield Console(grpc_socket=grpc_socket, port=int(listener.getsockname()[1]))
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await bridge.idle()
            server.should_exit = True
            await serving


_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # for one attempt, with the handshake
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class _EmbeddedServer(uvicorn.Server):
    """A server that leaves the signals of its process to others. is_listening: set once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Limit:
    """A timer that aborts a connection. (transport.close would wait for a peer that does not read.)"""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Start the time anew."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, transport.abort)

    def stop(self) -> None:
        """Stop the timer: the connection stays open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ClosesUnread(asyncio.Protocol):
    """What both protocols have in common: closes the connection of a peer that does not read."""

    transport: asyncio.Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = _Limit(UNREAD_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.start(self.transport)

    def resume_writing(self) -> None:
        self._unread.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.stop()
        super().connection_lost(exc)


class _BoundedSocket(_ClosesUnread, WebSocketsSansIOProtocol):
    """WebSockets, closed if the peer does not read."""


class _BoundedHttp(_ClosesUnread, H11Protocol):
    """Closes connections over the limit, of peers that do not read, and of those that do not send a request in time."""

    def __init__(self, peers: Peers, max_connections: int, **server: Any) -> None:
        super().__init__(**server)
        self._peers = peers
        self._max_connections = max_connections
        self._waiting = _Limit(HEAD_S)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = _address(self)
        if self._peers.is_over(address, map(_address, self.connections), self._max_connections):
            log.warning("too many connections to the console", address=address, max_connections=self._max_connections)
            transport.abort()
            return
        self._waiting.start(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_upgraded = self.transport.get_protocol() is not self
        if is_upgraded or (self.cycle is not None and not self.cycle.response_complete):
            self._waiting.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waiting.start(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.stop()
        super().connection_lost(exc)


def _address(connection: Any) -> str:
    return str(connection.client[0]) if connection.client else "127.0.0.1"


def _uvicorn_config(bridge: Bridge, peers: Peers, max_connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        bridge.app,
        http=functools.partial(_BoundedHttp, peers, max_connections),  # type: ignore[arg-type]  # it is called, no more
        ws=_BoundedSocket,
        ws_max_size=MAX_SOCKET_MESSAGE_BYTES,
        # Pings keep proxies from closing a quiet socket. They find no broken ones, because a socket that gRPC does not
        # read from does not read its pongs; TCP does that.
        ws_ping_interval=PING_S,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # audio does not shrink, and it costs memory and time of the event loop
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # gRPC decides which proxies are trusted
        server_header=False,
        timeout_graceful_shutdown=CLOSE_S,  # type: ignore[arg-type]  # its stub wants whole seconds
    )


async def _first(serving: asyncio.Task[None], listening: Coroutine[Any, Any, Any]) -> None:
    """Wait until the server listens. Raises what ends it before that."""
    waiting = asyncio.create_task(listening)
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        await serving


async def _listen(host: str, port: int) -> socket.socket:
    where = f"Cannot serve the console on {host}:{port}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # Of a name with both, IPv4; and [::] is for both, as it is for gRPC.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        if why := await asyncio.to_thread(why_unusable, host, port):
            raise SourceUnavailable(f"{where}: {why}.", reason="ADDRESS_UNUSABLE") from error
        message = f"{where}: choose another port with TYPELESS_CONSOLE_PORT."
        raise SourceUnavailable(message, reason="ADDRESS_IN_USE") from error
    # Connections inherit these.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
    if hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_MS // 2000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENT_MS // 6000)
    return listener


@contextmanager
def _private_directory() -> Iterator[Path]:
    """Yield a directory that only this user can enter, so that nobody else can connect to a socket in it."""
    try:
        with tempfile.TemporaryDirectory(prefix="typeless-", ignore_cleanup_errors=True) as name:
            yield Path(name)
    except FileNotFoundError as error:
        raise SourceUnavailable(
            "The console needs a directory for temporary files: set TMPDIR.", reason="ADDRESS_UNUSABLE"
        ) from error
