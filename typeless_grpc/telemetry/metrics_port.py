"""The port on which Prometheus reads the metrics.

Each connection has a thread, so connections are bounded: a new one closes the oldest. A scrape takes milliseconds, so
connections that send nothing cannot keep Prometheus out, and cost neither threads nor file descriptors.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from typeless_grpc.access.listening import why_unusable
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.metrics import Metrics

MAX_CONNECTIONS = 16
PAUSE_S = 0.1
SILENCE_S = 10.0  # a connection without a byte for this long is closed


class MetricsPort:
    """An HTTP port that answers `GET /metrics`."""

    def __init__(self, server: WSGIServer) -> None:
        """server: already bound."""
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._server.server_port)

    @classmethod
    def open(cls, metrics: Metrics, host: str, port: int) -> MetricsPort:
        """Listen; port 0 takes a free one. Raises SourceUnavailable if the address cannot be used."""
        try:
            return cls(_bound(metrics, host, port))
        except (OSError, UnicodeError) as error:
            if why := why_unusable(host, port):
                where = f"Cannot serve metrics on {host}:{port}"
                raise SourceUnavailable(f"{where}: {why}.", reason="ADDRESS_UNUSABLE") from error
            raise SourceUnavailable(
                f"Cannot serve metrics on {host}:{port}: choose another port with TYPELESS_METRICS_PORT.",
                reason="ADDRESS_IN_USE",
            ) from error

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """The HTTP server of the port, with a bounded number of connections."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open: deque[socket.socket] = deque()
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def get_request(self) -> Any:
        """Accept a connection. Without a free file descriptor, pause: the loop tries again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        with self._lock:
            self._open.append(request)
            if len(self._open) > MAX_CONNECTIONS:
                _end(self._open.popleft())
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was served."""
        with self._lock, suppress(ValueError):  # it was the oldest
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that break: the standard library prints a traceback for each."""

    def server_close(self) -> None:
        """Stop listening, and end all connections."""
        super().server_close()
        with self._lock:
            for connection in self._open:
                _end(connection)


class _Handler(WSGIRequestHandler):
    """The handler of one connection."""

    timeout = SILENCE_S

    def log_message(self, *_: Any) -> None:
        """Log nothing: scrapes are frequent."""


def _end(connection: socket.socket) -> None:
    """Let the thread of a connection read that it has ended."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _bound(metrics: Metrics, host: str, port: int) -> WSGIServer:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(_Server):
        address_family = family

    server = Server((address[0], port), _Handler)
    server.set_app(make_wsgi_app(metrics.registry))
    return server
