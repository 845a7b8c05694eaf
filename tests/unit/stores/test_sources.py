"""What a URI may reach: what was allowed, and nothing beside it."""

from __future__ import annotations

import http.server
import io
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable, TypelessError
from typeless_grpc.stores import sources
from typeless_grpc.stores.sources import CheckedSources, SourceOptions, is_public


class OneUpload:
    """Uploads, of which there is one."""

    def open(self, upload_id: str, owner: str | None) -> BinaryIO:
        if (upload_id, owner) != ("u1", "ann"):
            raise NotFound("none", reason="UPLOAD_NOT_FOUND")
        return io.BytesIO(b"uploaded")


def allowing(*prefixes: str, **options: Any) -> CheckedSources:
    return CheckedSources(OneUpload(), SourceOptions(prefixes, **options))  # type: ignore[arg-type]


def read(allowed: CheckedSources, uri: str) -> bytes:
    with allowed.open(uri, "ann", "audio.uri") as file:
        return file.read()


def refusal(allowed: CheckedSources, uri: str) -> str:
    with pytest.raises(TypelessError) as caught:
        read(allowed, uri)
    if isinstance(caught.value, InvalidInput):
        assert caught.value.violations[0].field == "audio.uri"
    return caught.value.reason


def test_an_upload_is_always_allowed_to_its_owner():
    assert read(allowing(), "upload://u1") == b"uploaded"
    with pytest.raises(NotFound):
        allowing().open("upload://u1", "bob", "audio.uri")


@pytest.mark.parametrize("uri", ["file:///etc/hostname", "https://example.com/a", "s3://b/k", "http://x/", "ftp://x/"])
def test_nothing_else_is_allowed_unless_the_operator_says_so(uri: str):
    assert refusal(allowing(), uri) == "URI_SCHEME_NOT_ALLOWED"


@pytest.mark.parametrize(
    "uri", ["", "no uri", "//host/path", "file:///a b", "file:///a\n", "https://[::1", "https://h:x/"]
)
def test_what_is_no_uri_is_refused(uri: str):
    assert refusal(allowing("https://example.com/", "file:///srv/"), uri) in ("URI_INVALID", "URI_SCHEME_NOT_ALLOWED")


# ---- files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files inside of what is allowed, and a secret outside of it."""
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    (tmp_path / "audio" / "a b.wav").write_bytes(b"inside")
    (tmp_path / "audio" / "deep" / "c.wav").write_bytes(b"deep")
    (tmp_path / "audio-secret").write_bytes(b"secret")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "audio" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "audio" / "inner.wav").symlink_to("deep/c.wav")
    (tmp_path / "audio" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "audio" / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "content"), [("a%20b.wav", b"inside"), ("deep/c.wav", b"deep"), ("inner.wav", b"deep")]
)
def test_a_file_under_the_prefix_is_read(tree: Path, path: str, content: bytes):
    for prefix in (f"file://{tree}/audio/", f"file://{tree}/audio"):
        assert read(allowing(prefix), f"file://{tree}/audio/{path}") == content


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("audio/../secret.wav", "URI_NOT_ALLOWED"),
        ("audio/%2e%2e/secret.wav", "URI_NOT_ALLOWED"),
        ("audio/deep/..%2f..%2fsecret.wav", "URI_NOT_ALLOWED"),
        ("audio-secret", "URI_NOT_ALLOWED"),
        ("secret.wav", "URI_NOT_ALLOWED"),
        ("audio/link.wav", "URI_NOT_ALLOWED"),
        ("audio/out/secret.wav", "URI_NOT_ALLOWED"),
        ("audio/%00", "URI_NOT_ALLOWED"),
        ("audio/pipe", "AUDIO_NOT_FOUND"),
        ("audio/deep", "AUDIO_NOT_FOUND"),
        ("audio/none.wav", "AUDIO_NOT_FOUND"),
        ("audio/", "AUDIO_NOT_FOUND"),
    ],
)
def test_what_leads_out_of_the_prefix_is_refused(tree: Path, path: str, reason: str):
    assert refusal(allowing(f"file://{tree}/audio/"), f"file://{tree}/{path}") == reason


def test_a_file_on_another_host_is_refused(tree: Path):
    assert refusal(allowing(f"file://{tree}/audio/"), f"file://host{tree}/audio/a%20b.wav") == "URI_NOT_ALLOWED"


def test_a_prefix_may_itself_be_reached_by_a_link(tree: Path):
    (tree / "alias").symlink_to(tree / "audio")
    assert read(allowing(f"file://{tree}/alias/"), f"file://{tree}/alias/a%20b.wav") == b"inside"


def test_a_file_that_is_too_large_is_refused(tree: Path):
    allowed = allowing(f"file://{tree}/audio/", max_bytes=5)
    assert refusal(allowed, f"file://{tree}/audio/a%20b.wav") == "AUDIO_TOO_LARGE"


# ---- object stores --------------------------------------------------------------------------------------------


def test_an_object_under_the_prefix_is_read():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/calls/a.wav", b"object")
    memory.pipe_file("/bucket/other/a.wav", b"secret")
    allowed = allowing("memory://bucket/calls/")
    assert read(allowed, "memory://bucket/calls/a.wav") == b"object"
    assert refusal(allowed, "memory://bucket/other/a.wav") == "URI_NOT_ALLOWED"
    assert refusal(allowed, "memory://bucket/calls/../other/a.wav") == "URI_NOT_ALLOWED"
    assert refusal(allowed, "memory://bucket/calls/none.wav") == "AUDIO_NOT_FOUND"


# ---- the web --------------------------------------------------------------------------------------------------


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
    ],
)
def test_public_addresses_are_told_from_private_ones(address: str, expected: bool):
    assert is_public(address) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0x7f000001", "2130706433"])
def test_a_host_that_is_not_public_is_refused(host: str):
    reason = refusal(allowing(f"https://{host}/"), f"https://{host}/a.wav")
    assert reason in ("URI_NOT_ALLOWED", "AUDIO_UNREACHABLE")  # the latter where no such name can be resolved


def test_a_name_is_refused_if_one_of_its_addresses_is_private(monkeypatch: pytest.MonkeyPatch):
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(sources.socket, "getaddrinfo", resolve)
    assert refusal(allowing("https://media.example.com/"), "https://media.example.com/a.wav") == "URI_NOT_ALLOWED"


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
    def do_GET(self) -> None:
        match self.path.split("?")[0]:
            case "/a.wav":
                self.answer(200, b"from the web")
            case "/redirect":
                self.answer(302, b"", {"Location": "https://169.254.169.254/secret"})
            case "/busy":
                self.answer(503, b"")
            case "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    for _ in range(100):
                        self.wfile.write(bytes(10_000))
                except OSError:
                    pass
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
        ("endless", "AUDIO_TOO_LARGE"),
    ],
)
def test_answers_that_hold_no_recording_are_told_apart(web: str, path: str, reason: str):
    assert refusal(allowing(f"{web}/", private_hosts=True, max_bytes=100_000), f"{web}/{path}") == reason


def test_a_download_that_takes_too_long_is_given_up(web: str):
    allowed = allowing(f"{web}/", private_hosts=True, timeout_s=-1.0)
    with pytest.raises(SourceUnavailable) as caught:
        allowed.open(f"{web}/a.wav", "ann", "audio.uri")
    assert caught.value.retryable


def test_a_host_of_another_name_is_not_believed(web: str):
    by_address = web.replace("localhost", "127.0.0.1")
    assert refusal(allowing(f"{by_address}/", private_hosts=True), f"{by_address}/a.wav") == "AUDIO_UNREACHABLE"


# ---- what the operator writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/srv/audio", "file://srv/audio", "http://example.com/", "https:///x", "s3:///k"])
def test_a_prefix_that_would_not_do_what_it_seems_to_is_refused(prefix: str):
    with pytest.raises(InvalidInput) as caught:
        allowing(prefix)
    assert caught.value.reason == "CONFIG_INVALID"


def test_what_waits_for_other_machines_is_known():
    allowed = allowing()
    assert not allowed.is_remote("upload://u1")
    assert not allowed.is_remote("file:///srv/a.wav")
    assert allowed.is_remote("https://example.com/a.wav")
    assert allowed.is_remote("s3://bucket/a.wav")
