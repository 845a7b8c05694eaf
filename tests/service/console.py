"""What the tests of the console need: a server with one, and HTTP and WebSocket clients that say what they like."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests import servers
from tests.harness import Served, pcm
from typeless_grpc.console.calls import BEARER_PROTOCOL, PROTOCOL

RAW = {"encoding": "AUDIO_ENCODING_PCM_S16LE", "sampleRateHertz": 16_000}
HELLO = {"audio": {"content": base64.b64encode(pcm()).decode(), "format": RAW}}
END = json.dumps({"control": "STREAM_CONTROL_END"})
TIMEOUT_S = 20.0


def config(**fields: Any) -> str:
    """The first message of a stream."""
    return json.dumps({"config": {"format": RAW} | fields})


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. headers: by their name in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of a failed call."""
        return reason(self.json)


def reason(status: Mapping[str, Any]) -> str:
    """The reason of a Status in JSON."""
    info = next(d for d in status["details"] if d["@type"].endswith("google.rpc.ErrorInfo"))
    return str(info["reason"])


@dataclass(frozen=True)
class Site:
    """A console that a test calls."""

    port: int

    async def send(
        self, path: str, body: bytes | None = None, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, and return its answer."""

        def request() -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
            try:
                connection.request(method, path, body, dict(headers or {}))
                answer = connection.getresponse()
                return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
            finally:
                connection.close()

        return await asyncio.to_thread(request)

    async def call(self, service: str, method: str, request: Any = None, **headers: str) -> Answer:
        """Make a call with a single request. headers: with `_` for `-`."""
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        return await self.send(f"/v1/{service}/{method}", json.dumps(request or {}).encode(), "POST", sent)

    def socket(self, path: str = "/v1/stream", *, key: str = "", **options: Any) -> connect:
        """A WebSocket, as a page opens it."""
        protocols = [PROTOCOL]
        if key:
            protocols.append(BEARER_PROTOCOL + base64.urlsafe_b64encode(key.encode()).decode().rstrip("="))
        return connect(f"ws://127.0.0.1:{self.port}{path}", subprotocols=protocols, proxy=None, **options)  # type: ignore[arg-type]


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """The next message."""
    async with asyncio.timeout(TIMEOUT_S):
        message: dict[str, Any] = json.loads(await socket.recv())
        return message


async def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Messages up to the first of a kind: "segment", "error"."""
    got = [await receive(socket)]
    while kind not in got[-1]:
        got.append(await receive(socket))
    return got


async def closed(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """The messages that still come, and the code of the close."""
    got = []
    try:
        while True:
            got.append(await receive(socket))
    except ConnectionClosed as error:
        return got, error.rcvd.code if error.rcvd else 1006


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["segment"]["text"] for message in messages if "segment" in message]


@asynccontextmanager
async def with_console(serve: Any, *args: Any, **settings: Any) -> AsyncIterator[tuple[Served, Site]]:
    """A server as `serve` makes it, and its console."""
    port = servers.free_port()
    async with serve(*args, console_port=port, **settings) as served:
        yield served, Site(port)
