"""What is fetched from the web: recordings that are whole, from hosts that are public."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.unit.sources.test_checked import allowing, refusal
from typeless_grpc.errors import RateLimited, SourceUnavailable
from typeless_grpc.sources.web import is_public


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("::7f00:1", False),
    ],
)
def test_public_and_private_addresses_are_distinguished(address: str, expected: bool):
    assert is_public(address) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0x7f000001", "2130706433"])
def test_a_host_that_is_not_public_is_refused(host: str):
    reason = refusal(allowing(f"https://{host}/"), f"https://{host}/a.wav")
    assert reason in ("URI_NOT_ALLOWED", "AUDIO_UNREACHABLE")  # the latter where no such name can be resolved


def test_a_name_is_refused_if_one_of_its_addresses_is_private(monkeypatch: pytest.MonkeyPatch):
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert refusal(allowing("https://media.example.com/"), "https://media.example.com/a.wav") == "URI_NOT_ALLOWED"


def test_a_name_that_changes_its_address_reaches_nothing(monkeypatch: pytest.MonkeyPatch):
    answers, reached = iter(["93.184.216.34", "127.0.0.1"]), []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], *_: Any) -> socket.socket:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert refusal(allowing("https://media.example.com/"), "https://media.example.com/a.wav") == "AUDIO_UNREACHABLE"
    assert reached == [("93.184.216.34", 443)]


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/other/a.wav",
        "https://example.com.evil.org/audio/a.wav",
        "https://example.com@evil.org/audio/a.wav",
        "https://user@example.com/audio/a.wav",
        "https://example.com:8443/audio/a.wav",
        "https://example.com/audio/../other/a.wav",
        "https://example.com/audio/%2e%2e/other/a.wav",
        "https://example.com/audio\\..\\other",
    ],
)
def test_an_address_outside_of_the_prefix_is_refused(uri: str):
    assert refusal(allowing("https://example.com/audio/"), uri) == "URI_NOT_ALLOWED"


class Handler(http.server.BaseHTTPRequestHandler):
    stopping = threading.Event()

    def do_GET(self) -> None:
        match self.path.split("?")[0]:
            case "/a.wav":
                self.answer(200, b"from the web")
            case "/redirect":
                self.answer(302, b"", {"Location": "https://169.254.169.254/secret"})
            case "/busy":
                self.answer(503, b"")
            case "/broken":
                self.answer(200, b"not all of it", {"Content-Length": "1000"})
            case "/headers-without-end":
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                    while not self.stopping.wait(0.02):
                        self.wfile.write(b"x")
            case "/body-without-end":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not self.stopping.wait(0.02):
                        self.wfile.write(b"x")
            case "/endless":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(bytes(10_000))
            case _:
                self.answer(404, b"")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An HTTPS server on the loopback, whose certificate is trusted."""
    directory = tmp_path_factory.mktemp("web")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost"
    made = subprocess.run([*command.split(), "-keyout", key, "-out", certificate], capture_output=True)
    if made.returncode:
        pytest.skip("openssl is not installed")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(certificate)
    yield f"https://localhost:{server.server_port}"
    os.environ.pop("SSL_CERT_FILE")
    if before is not None:
        os.environ["SSL_CERT_FILE"] = before
    Handler.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_recording_of_the_web_is_fetched_and_can_be_sought_in(web: str):
    allowed = allowing(f"{web}/", private_hosts=True)
    with allowed.open(f"{web}/a.wav?token=x", "ann", "audio.uri") as file:
        assert file.read() == b"from the web"
        assert file.seek(5) == 5
        assert file.read() == b"the web"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("redirect", "URI_NOT_ALLOWED"),
        ("missing", "AUDIO_NOT_FOUND"),
        ("busy", "AUDIO_UNREACHABLE"),
        ("broken", "AUDIO_UNREACHABLE"),
        ("endless", "AUDIO_TOO_LARGE"),
    ],
)
def test_answers_without_a_recording_are_distinguished(web: str, path: str, reason: str):
    assert refusal(allowing(f"{web}/", private_hosts=True, max_bytes=100_000), f"{web}/{path}") == reason


@pytest.mark.parametrize("path", ["a.wav", "body-without-end"], ids=["with its length", "without its length"])
def test_a_download_leaves_room_on_the_disk(web: str, path: str):
    assert refusal(allowing(f"{web}/", private_hosts=True, min_free_percent=100.0), f"{web}/{path}") == "STORAGE_FULL"


def test_a_download_reserves_its_bytes(web: str):
    reserved: list[int] = []
    allowed = allowing(f"{web}/", private_hosts=True)
    allowed.open(f"{web}/a.wav", "ann", "audio.uri", reserved.append).close()
    assert reserved == [12, 12]


@pytest.mark.parametrize("path", ["a.wav", "body-without-end"], ids=["with its length", "without its length"])
def test_a_download_ends_when_its_bytes_cannot_be_reserved(web: str, path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("typeless_grpc.sources.web.RESERVE_BYTES", 10)

    def refuse(n_bytes: int) -> None:
        raise RateLimited("full", reason="UPLOAD_QUOTA_EXCEEDED")

    with pytest.raises(RateLimited):
        allowing(f"{web}/", private_hosts=True).open(f"{web}/{path}", "ann", "audio.uri", refuse)


def test_a_host_is_reached_by_whichever_of_its_addresses_answers(web: str, monkeypatch: pytest.MonkeyPatch):
    resolve = socket.getaddrinfo

    def with_a_dead_one(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        found = resolve("127.0.0.1" if host == "localhost" else host, port, *more, **options)
        # Nothing listens on this port of that address of the loopback.
        return [(2, 1, 6, "", ("127.9.9.9", port)), *found] if host == "localhost" else found

    monkeypatch.setattr(socket, "getaddrinfo", with_a_dead_one)
    with allowing(f"{web}/", private_hosts=True).open(f"{web}/a.wav", "ann", "audio.uri") as file:
        assert file.read() == b"from the web"


@pytest.mark.parametrize("path", ["headers-without-end", "body-without-end"])
def test_a_download_that_takes_too_long_is_given_up(web: str, path: str):
    given_up(web, path)


def given_up(web: str, path: str) -> None:
    allowed = allowing(f"{web}/", private_hosts=True, timeout_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(allowed.open, f"{web}/{path}", "ann", "audio.uri")
        with pytest.raises(SourceUnavailable) as caught:
            opening.result(15)  # a silent host alone would be left after 30 s
    assert caught.value.retryable


def test_a_host_that_never_greets_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections, and says nothing
        given_up(f"https://127.0.0.1:{server.getsockname()[1]}", "a.wav")


def test_a_host_that_is_reached_when_the_time_is_over_is_given_up(web: str, monkeypatch: pytest.MonkeyPatch):
    connect = socket.create_connection

    def late(*arguments: Any) -> socket.socket:
        time.sleep(1.0)
        return connect(*arguments)

    monkeypatch.setattr(socket, "create_connection", late)
    given_up(web, "body-without-end")


def test_a_host_of_another_name_is_not_believed(web: str):
    by_address = web.replace("localhost", "127.0.0.1")
    assert refusal(allowing(f"{by_address}/", private_hosts=True), f"{by_address}/a.wav") == "AUDIO_UNREACHABLE"
