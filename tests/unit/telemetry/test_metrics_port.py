from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.metrics_port import MAX_CONNECTIONS, MetricsPort


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def port(host: str) -> Iterator[MetricsPort]:
    opened = MetricsPort.open(Metrics(), host, 0)
    yield opened
    opened.close()


def connected(host: str, port: MetricsPort) -> socket.socket:
    return socket.create_connection((host, port.port), timeout=10)


def scraped(host: str, port: MetricsPort) -> str:
    name = f"[{host}]" if ":" in host else host
    with urllib.request.urlopen(f"http://{name}:{port.port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_connections_that_send_nothing_keep_prometheus_out_no_more_than_threads(host: str, port: MetricsPort):
    n_threads, n_silent = threading.active_count(), 10 * MAX_CONNECTIONS
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(host, port)) for _ in range(n_silent)]
        for connection in silent[::2]:
            connection.send(b"GET /met")
        assert "grpc_server" in scraped(host, port)
        for connection in silent[: n_silent - MAX_CONNECTIONS]:
            assert connection.recv(1) == b""  # ended by the port
        assert threading.active_count() <= n_threads + 2 * MAX_CONNECTIONS  # some are about to end
    assert "grpc_server" in scraped(host, port)


def test_a_port_that_closes_ends_its_connections(host: str):
    opened = MetricsPort.open(Metrics(), host, 0)
    with connected(host, opened) as connection:
        connection.send(b"GET /met")
        scraped(host, opened)  # so the connection before it was accepted
        opened.close()
        assert connection.recv(1) == b""


def test_a_connection_that_is_reset_leaves_no_traceback(
    host: str, port: MetricsPort, capfd: pytest.CaptureFixture[str]
):
    for _ in range(20):
        with connected(host, port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    scraped(host, port)
    assert capfd.readouterr() == ("", "")
