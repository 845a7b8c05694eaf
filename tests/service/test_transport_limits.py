"""Bounds of the transport: headers, messages, pings, connections, and calls on one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc
import pytest

from tests.harness import request, serving
from tests.service.access import KEYS, outcome
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

CHECK = "/grpc.health.v1.Health/Check"
INFO = "/typeless.v1.ServerService/GetServerInfo"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"


@dataclass
class RawConnection:
    """HTTP/2 by hand, for what no client of gRPC does: begin a message and not end it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytearray = field(default_factory=bytearray)

    @classmethod
    @asynccontextmanager
    async def to(cls, target: str) -> AsyncIterator[RawConnection]:
        host, _, port = target.rpartition(":")
        connection = cls(*await asyncio.open_connection(host, int(port)))
        connection.writer.write(PREFACE)
        try:
            yield connection
        finally:
            connection.writer.close()

    def begin(self, stream: int, method: str, *headers: tuple[str, str]) -> None:
        """Open a call: its headers, not indexed and not compressed (RFC 7541, 6.2.2)."""
        usual = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "a"), ("te", "trailers")]
        block = b"".join(
            b"\0" + b"".join(bytes([len(text)]) + text.encode("latin-1") for text in pair)
            for pair in (*usual, ("content-type", "application/grpc"), *headers)
        )
        self._frame(1, 4, stream, block)

    def part_of_message(self, stream: int, declared_bytes: int, sent_bytes: int) -> None:
        """The prefix of a message, and less of it than that says."""
        self._frame(0, 0, stream, b"\0" + declared_bytes.to_bytes(4, "big") + b"x" * sent_bytes)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload)

    async def until(self, *texts: bytes) -> None:
        """Read until all these came, in texts that gRPC does not compress."""
        async with asyncio.timeout(30):
            while not all(text in self.received for text in texts):
                data = await self.reader.read(65536)
                assert data, f"closed before {texts} came: {bytes(self.received[-500:])!r}"
                self.received += data


async def test_too_large_headers_are_refused_and_other_calls_continue():
    async with serving(ScriptedEngine(), max_metadata_bytes=2048) as served:
        small = await outcome(served, CHECK, ("x-note", "x" * 1000))
        large = await outcome(served, CHECK, ("x-note", "x" * 4000))
        again = await outcome(served, CHECK)
    assert small is None
    assert large is not None
    assert large.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert again is None


NO_UTF8 = "\xff\xe9\x80"


@pytest.mark.parametrize("authenticated", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (f"/{NO_UTF8}/{NO_UTF8}", []),
        (f"{CHECK}{NO_UTF8}", []),
        *((INFO, [(name, NO_UTF8)]) for name in ("x-api-key", "authorization", "x-request-id", "x-forwarded-for")),
        *((INFO, [(name, NO_UTF8)]) for name in ("traceparent", "tracestate", "grpc-timeout", "user-agent", NO_UTF8)),
    ],
    ids=lambda value: ascii(value[0][0] if isinstance(value, list) and value else value),
)
async def test_headers_that_are_not_utf_8_end_at_most_their_own_call(
    method: str, headers: list[tuple[str, str]], authenticated: bool
):
    keys = KEYS if authenticated else {}
    async with serving(ScriptedEngine(), **keys) as served:
        running = served.transcription.Transcribe(request())
        async with RawConnection.to(served.target) as connection:
            connection.begin(1, method, *headers)
            connection.part_of_message(1, 0, 0)
            with suppress(AssertionError):  # the connection may be closed
                await connection.until(b"grpc-status")
        assert (await running).transcript.text
        assert await outcome(served, CHECK) is None


async def test_a_client_that_floods_the_server_with_pings_is_disconnected():
    async with serving(ScriptedEngine()) as served:
        host, _, port = served.target.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE)
        received = b""
        async with asyncio.timeout(20):
            while True:
                try:
                    writer.write(PING)
                    await writer.drain()
                    data = await reader.read(4096)
                except ConnectionError:
                    break
                if not data:
                    break
                received += data
        writer.close()
    assert b"too_many_pings" in received


async def test_calls_beyond_the_limit_of_a_connection_wait():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, max_calls_per_connection=2) as served:
        calls = [served.transcription.Transcribe(request()) for _ in range(3)]
        await engine.until(n_calls=2)
        # A call on another connection gets through while the third waits in its client.
        with socket.create_connection(("127.0.0.1", int(served.target.rpartition(":")[2]))):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(served.target, options=options) as another:
                await another.unary_unary(CHECK)(b"")
        assert len(engine.calls) == 2
        engine.gate.set()
        await asyncio.gather(*calls)
    assert len(engine.calls) == 3


TRANSCRIBE = "/typeless.v1.TranscriptionService/Transcribe"
BATCH = "/typeless.v1.TranscriptionService/BatchTranscribe"
MIB = 1024 * 1024


@pytest.mark.parametrize("method", [TRANSCRIBE, BATCH])
async def test_a_call_without_a_key_is_refused_before_its_message_arrives(method: str):
    async with (
        serving(ScriptedEngine(), auth_enabled=True, require_auth=True) as served,
        RawConnection.to(served.target) as connection,
    ):
        connection.begin(1, method)
        connection.part_of_message(1, declared_bytes=30 * MIB, sent_bytes=1000)
        await connection.until(b"This call needs a key")


async def test_the_refusal_of_a_large_request_reaches_its_caller():
    large = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=b"x" * (30 * MIB)))
    async with serving(ScriptedEngine(), auth_enabled=True, require_auth=True) as served:
        for _ in range(10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.transcription.Transcribe(large)
            assert CallFailed.of(caught.value).reason == "KEY_REQUIRED"


async def test_a_request_that_decompresses_beyond_the_limit_is_refused():
    bomb = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=bytes(100 * MIB)))
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.transcription.Transcribe(bomb, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await served.transcription.Transcribe(request())).transcript.text


@pytest.mark.parametrize(
    ("method", "element"),
    [
        ("/typeless.v1.TranscriptionService/BatchTranscribe", b"\x0a\x00"),
        ("/typeless.v1.TranscriptionService/Transcribe", b"\x12\x02\x2a\x00"),
        ("/typeless.v1.TranscriptionService/StreamTranscribe", b"\x0a\x02\x12\x00"),
        (CHECK, b"\x98\x06\x01"),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) else "",
)
async def test_a_message_of_millions_of_fields_is_refused_before_it_is_parsed(method: str, element: bytes):
    async with serving(ScriptedEngine()) as served:
        call = served.channel.stream_stream(method)(iter([element * (20 * MIB // len(element))]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in call]
        assert CallFailed.of(caught.value).reason == "TOO_MANY_FIELDS"
        assert (await served.transcription.Transcribe(request())).transcript.text


async def test_a_message_that_is_never_complete_ends_its_call():
    async with (
        serving(ScriptedEngine(), request_arrival_timeout_s=0.2) as served,
        RawConnection.to(served.target) as connection,
    ):
        connection.begin(1, TRANSCRIBE)
        connection.part_of_message(1, declared_bytes=30 * MIB, sent_bytes=1000)
        await connection.until(b"The request was not complete")


async def test_incomplete_messages_are_bounded_and_short_calls_continue():
    async with (
        serving(ScriptedEngine(), max_unfinished_bytes=4 * 36 * MIB) as served,
        RawConnection.to(served.target) as connection,
    ):
        for stream in (1, 3):
            connection.begin(stream, TRANSCRIBE)
            connection.part_of_message(stream, declared_bytes=30 * MIB, sent_bytes=1000)
        # Of four slots, one caller may use one: its second request is refused.
        await connection.until(b"1 requests of this caller are already arriving slowly")
        assert (await served.transcription.Transcribe(request())).transcript.text


async def test_connections_beyond_the_limit_are_closed():
    async with serving(ScriptedEngine(), max_connections=1) as served:
        assert await outcome(served, CHECK) is None
        async with RawConnection.to(served.target) as connection, asyncio.timeout(30):
            while await connection.reader.read(65536):
                pass
        assert await outcome(served, CHECK) is None


async def test_a_silent_peer_is_disconnected():
    async with serving(ScriptedEngine(), keepalive_s=1) as served, RawConnection.to(served.target) as connection:
        connection.begin(1, "/grpc.health.v1.Health/Watch")
        connection.part_of_message(1, declared_bytes=0, sent_bytes=0)
        ping = bytes([0, 0, 8, 6, 0])
        await connection.until(ping)


async def test_an_old_connection_must_be_replaced():
    async with (
        serving(ScriptedEngine(), max_connection_age_s=1) as served,
        RawConnection.to(served.target) as connection,
    ):
        await connection.until(b"max_age")
        assert await outcome(served, CHECK) is None
