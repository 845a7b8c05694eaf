"""The console behind the nginx of `deploy/`, with TLS."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.harness import serving
from tests.nginx import command
from tests.servers import free_port
from tests.service.console import END, config, texts, until
from tests.service.test_tls import Authority
from tests.speech import tone
from typeless_grpc.engine.scripted import ScriptedEngine

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]

ORIGIN = "https://speech.example.com"


@asynccontextmanager
async def nginx(folder: Path, console_port: int) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """nginx in front of a console, its port, and what trusts its certificate."""
    authority, port = Authority(folder), free_port()
    cert, key = authority.issue("proxy")
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/typeless/fullchain.pem": str(cert),
        "/etc/ssl/typeless/privkey.pem": str(key),
        "127.0.0.1:8080": f"127.0.0.1:{console_port}",
        "/run/typeless-console-nginx.pid": f"{folder}/nginx.pid",
    }
    process = await asyncio.create_subprocess_exec(*command(folder, "nginx-console.conf", changes))
    trust = ssl.create_default_context(cafile=str(authority.ca))
    trust.check_hostname = False  # it is for 127.0.0.1
    try:
        async with asyncio.timeout(30):
            while not (folder / "nginx.pid").exists():  # noqa: ASYNC110  # nginx writes it, and says nothing
                await asyncio.sleep(0.02)
        yield port, trust
    finally:
        process.terminate()
        await process.wait()


async def test_calls_and_streams_pass_through_nginx_with_their_callers_addresses(tmp_path: Path):
    console_port = free_port()
    settings = {"console_origins": ORIGIN, "trusted_proxies": "127.0.0.1", "rate_limit_config": "1/hour"}
    engine = ScriptedEngine(lambda call: "hello")
    headers = {"host": "speech.example.com", "origin": ORIGIN}
    async with (
        serving(engine, console_port=console_port, rate_limit_enabled=True, **settings),
        nginx(tmp_path, console_port) as (port, trust),
    ):

        def call(address: str) -> int:
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=20)
            sent = headers | {"content-type": "application/json", "x-forwarded-for": address}
            connection.request("POST", "/v1/ServerService/GetServerInfo", b"{}", sent)
            answer = connection.getresponse()
            json.loads(answer.read())
            connection.close()
            return answer.status

        addresses = ("192.0.2.1", "192.0.2.1", "192.0.2.2")
        assert [await asyncio.to_thread(call, address) for address in addresses] == [200, 429, 200]
        # The handshake has its Host from the address.
        async with connect(
            f"wss://speech.example.com:{port}/v1/stream", host="127.0.0.1", ssl=trust, origin=ORIGIN, proxy=None
        ) as ws:
            await ws.send(config())
            await ws.send(tone(1.0))
            await ws.send(END)
            got = await until(ws, "completed")
    assert texts(got) == ["hello"]
