"""TLS and mutual TLS with real certificates, changed while the server runs."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.harness import serving
from tests.servers import free_port
from tests.service.access import USER, guarded
from tests.service.test_metrics import scrape
from typeless_grpc.client import AsyncClient, CallFailed, Client, Tls, async_channel
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.tls import TlsFiles, TlsReloader


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def answers(target: str, tls: Tls | None, api_key: str = "") -> bool:
    """Whether a new connection gets an answer."""
    async with AsyncClient(target, api_key=api_key, tls=tls) as client:
        try:
            await client.server_info(timeout_s=30)
        except CallFailed as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True


async def test_calls_and_keys_go_over_tls(authority: Authority):
    cert, key = authority.issue("server")
    async with guarded(require_auth=True, open_services="", tls_cert_file=str(cert), tls_key_file=str(key)) as served:

        def sync_call() -> str:
            with Client(served.target, api_key=USER, tls=Tls(ca=authority.ca)) as client:
                return client.server_info().version

        assert await answers(served.target, Tls(ca=authority.ca), USER)
        assert await asyncio.get_running_loop().run_in_executor(None, sync_call)
        assert not await answers(served.target, None, USER)
        assert not await answers(served.target, Tls(), USER)


async def test_mutual_tls_admits_only_clients_of_the_authority(authority: Authority, tmp_path: Path):
    cert, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    strange, strange_key = Authority(tmp_path, "stranger").issue("somebody")
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_client_ca_file": str(authority.ca)}
    async with serving(ScriptedEngine(), **files) as served:
        assert await answers(served.target, Tls(ca=authority.ca, cert=mine, key=my_key))
        assert not await answers(served.target, Tls(ca=authority.ca))
        assert not await answers(served.target, Tls(ca=authority.ca, cert=strange, key=strange_key))


async def test_changed_files_are_reloaded_and_running_streams_continue(authority: Authority, tmp_path: Path):
    cert, key = authority.issue("server")
    successor = Authority(tmp_path, "successor")
    old, new = Tls(ca=authority.ca), Tls(ca=successor.ca)
    async with AsyncExitStack() as stack:
        files = {"tls_cert_file": str(cert), "tls_key_file": str(key)}
        served = await stack.enter_async_context(serving(ScriptedEngine(), warm=False, **files))
        channel = await stack.enter_async_context(async_channel(served.target, api_key="", tls=old))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        renewed_cert, renewed_key = successor.issue("renewed")
        cert.write_bytes(renewed_cert.read_bytes())
        # The key is not there yet: the pair does not fit, and the old one stays.
        assert await answers(served.target, old)
        key.write_bytes(renewed_key.read_bytes())
        assert await answers(served.target, new)
        assert not await answers(served.target, old)
        await served.server.serving()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_changed_client_authority_is_reloaded_and_running_streams_continue(
    authority: Authority, tmp_path: Path
):
    cert, key = authority.issue("server")
    successor = Authority(tmp_path, "successor")
    old_ca, new_ca = authority.ca.read_bytes(), successor.ca.read_bytes()
    clients_ca = tmp_path / "clients.pem"
    clients_ca.write_bytes(old_ca)
    old, new = (Tls(authority.ca, *of.issue(name)) for of, name in ((authority, "old"), (successor, "new")))
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_client_ca_file": str(clients_ca)}
    async with serving(ScriptedEngine(), warm=False, **files) as served:
        assert not await answers(served.target, new)
        async with async_channel(served.target, api_key="", tls=old) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            clients_ca.write_bytes(old_ca + new_ca)
            assert await answers(served.target, old)
            assert await answers(served.target, new)
            clients_ca.write_bytes(new_ca)
            assert not await answers(served.target, old)
            assert await answers(served.target, new)
            await served.server.serving()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("spoil", ["missing", "not PEM", "not its key", "no authority"])
def test_unusable_files_fail_the_start(authority: Authority, tmp_path: Path, spoil: str):
    cert, key = authority.issue("server")
    ca = None
    if spoil == "missing":
        key = tmp_path / "nothing"
    elif spoil == "not PEM":
        key.write_text("a secret that must not be shown", encoding="utf-8")
    elif spoil == "not its key":
        key = authority.issue("another")[1]
    else:
        ca = tmp_path / "empty"
        ca.write_bytes(b"")
    with pytest.raises(SourceUnavailable) as caught:
        TlsReloader(TlsFiles(cert, key, ca))
    assert caught.value.reason == "TLS_UNUSABLE"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("a pipe", "regular file"), ("a device", "regular file"), ("huge", "too large"), ("encrypted", "encrypted")],
)
def test_a_file_that_could_block_handshakes_is_refused_at_once(authority: Authority, kind: str, why: str):
    cert, key = authority.issue("server")
    reloader = TlsReloader(TlsFiles(cert, key))
    if kind == "encrypted":  # OpenSSL would ask for the password on the terminal
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        password = serialization.BestAvailableEncryption(b"password")
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key.write_bytes(private.private_bytes(pem, form, password))
    elif kind == "huge":
        cert.write_bytes(cert.read_bytes() + b"\n" * 2_000_000)
    else:
        cert.unlink()
        os.mkfifo(cert) if kind == "a pipe" else cert.symlink_to("/dev/zero")
    with pytest.raises(SourceUnavailable, match=f"(?i){why}"):
        TlsReloader(TlsFiles(cert, key))
    assert reloader.changed() is None


def test_the_expiry_is_that_of_the_certificate_in_force(authority: Authority):
    cert, key = authority.issue("server")
    reloader = TlsReloader(TlsFiles(cert, key))
    first_s = reloader.expires_s()
    assert first_s == x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc.timestamp()
    later_cert, later_key = authority.issue("later", valid_h=48)
    cert.write_bytes(later_cert.read_bytes())
    assert reloader.changed() is None  # not yet a pair
    assert reloader.expires_s() == first_s
    key.write_bytes(later_key.read_bytes())
    assert reloader.changed() is not None
    assert reloader.expires_s() == pytest.approx(first_s + 47 * 3600, abs=60)


async def test_a_metric_has_the_time_at_which_the_certificate_expires(authority: Authority):
    cert, key = authority.issue("server")
    port = free_port()
    async with serving(ScriptedEngine(), tls_cert_file=cert, tls_key_file=key, metrics_port=port):
        seen = await scrape(port)
    assert seen["typeless_tls_certificate_expiry_timestamp_seconds"] == TlsReloader(TlsFiles(cert, key)).expires_s()


def test_a_changed_link_is_a_change(authority: Authority, tmp_path: Path):
    """As Kubernetes swaps a mounted secret."""
    link_cert, link_key = tmp_path / "cert", tmp_path / "key"
    for name in ("first", "second"):
        cert, key = authority.issue(name)
        for link, file in ((link_cert, cert), (link_key, key)):
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        if name == "first":
            reloader = TlsReloader(TlsFiles(link_cert, link_key))
            assert reloader.changed() is None
    assert reloader.changed() is not None
    assert reloader.changed() is None
