"""What `typeless` says if it cannot connect: the cause, and what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.certificates import Authority
from tests.harness import AUDIO, serving
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.scripted import ScriptedEngine


async def complaint(*options: str) -> str:
    """The line on stderr of a command that cannot connect."""
    arguments = ["transcribe", *options, str(AUDIO / "en_short.flac")]
    done = await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="typeless")
    assert (done.exit_code, done.stdout) == (1, "")
    return done.stderr


async def test_a_server_with_tls_that_is_called_in_another_way(tmp_path: Path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server")
    async with serving(ScriptedEngine(), tls_cert_file=str(cert), tls_key_file=str(key)) as served:
        assert "a server with TLS needs --tls" in await complaint("--server", served.target)
        assert "name its authority with --tls-ca" in await complaint(
            "--server", served.target, "--tls-ca", str(stranger.ca)
        )
        other_name = served.target.replace("127.0.0.1", "localhost")
        assert "is for another name" in await complaint("--server", other_name, "--tls-ca", str(authority.ca))


async def test_a_server_that_requires_certificates(tmp_path: Path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_client_ca_file": str(authority.ca)}
    async with serving(ScriptedEngine(), **files) as served:
        assert "--client-cert" in await complaint("--server", served.target, "--tls-ca", str(authority.ca))


async def test_a_server_without_tls_that_is_called_with_it():
    async with serving(ScriptedEngine()) as served:
        assert "leave out --tls" in await complaint("--server", served.target, "--tls")


async def test_a_port_that_speaks_http():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "is not a gRPC server" in await complaint("--server", f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("127.0.0.1:1", "name another with --server, or add --local"),
        ("127.255.255.254", "(port 443, because the address names none)"),
        ("no-such-host.invalid:50051", "this name cannot be resolved"),
    ],
)
async def test_an_address_without_a_server(server: str, words: str):
    assert words in await complaint("--server", server)
