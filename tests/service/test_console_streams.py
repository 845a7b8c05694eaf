"""Streams of the console: WebSockets that carry those of gRPC, with their flow control and their end."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.harness import serving
from tests.pace import awake
from tests.service.console import END, HELLO, closed, config, reason, receive, texts, until, with_console
from tests.speech import BYTES_PER_S, cut, samples_as_text, silence, speech, tone, words_as_they_come
from typeless_grpc.console import port
from typeless_grpc.engine.scripted import ScriptedEngine


async def test_a_stream_from_started_to_completed():
    async with (
        with_console(serving, ScriptedEngine(words_as_they_come)) as (_, site),
        site.socket() as ws,
    ):
        assert ws.subprotocol == "typeless.v1"
        await ws.send(config(interimResults=True, options={"language": "en"}))
        for part in cut(speech(1.0, 1.0), [3200]):
            await ws.send(part)
        await ws.send(json.dumps({"update": {"language": "de"}}))
        got = await until(ws, "configured")
        # The same, as JSON.
        await ws.send(json.dumps({"audio": base64.b64encode(speech(1.0, 1.0)).decode()}))
        await ws.send(END)
        more, code = await closed(ws)
    got += more
    assert code == 1000
    assert [int(message["sequence"]) for message in got] == list(range(1, len(got) + 1))
    assert [text.split()[:2] for text in texts(got)] == [["one", "two"]] * 2
    assert any("interim" in message for message in got)
    assert got[-1]["completed"]["endReason"] == "STREAM_END_REASON_CALLER"
    assert got[-1]["acknowledgedBytes"] == str(4 * BYTES_PER_S)


async def test_an_empty_message_half_closes():
    async with with_console(serving, ScriptedEngine(lambda call: "hello")) as (_, site), site.socket() as ws:
        await ws.send(config())
        await ws.send(tone(1.0))
        await ws.send("")
        got, code = await closed(ws)
    assert (texts(got), code) == (["hello"], 1000)


@pytest.mark.parametrize(
    ("messages", "code", "why"),
    [
        (["{"], 4003, "JSON_INVALID"),
        (['{"config": {"format": {"encoding": "MP3"}}}'], 4003, "JSON_INVALID"),
        (["[" * 5000], 4003, "JSON_INVALID"),
        ([b"\x00\x01"], 4003, "STREAM_ORDER"),  # config comes first
        ([config(options={"decoding": {"beamSize": 99}})], 4003, "INVALID_FIELD"),
        ([config(format=None, resumeSessionId="nothing")], 4005, "SESSION_NOT_FOUND"),
        ([config(), "", b"\x00\x00"], 4009, "REQUESTS_ENDED"),
    ],
)
async def test_a_stream_that_fails_ends_with_its_status(messages: list[str | bytes], code: int, why: str):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site), site.socket() as ws:
        for message in messages:
            await ws.send(message)
        got, closed_with = await closed(ws)
    error = got[-1]["error"]
    assert (reason(error), error["code"] + 4000) == (why, code)
    assert error["message"]
    assert closed_with == code


async def test_a_message_over_the_limit_closes_the_socket():
    async with with_console(serving, ScriptedEngine()) as (_, site), site.socket() as ws:
        await ws.send(config())
        await receive(ws)
        await ws.send(bytes(1024 * 1024 + 2))
        assert (await closed(ws))[1] == 1009


async def test_calls_with_a_single_request_have_no_socket():
    async with with_console(serving, ScriptedEngine()) as (_, site):
        for path in ("/v1/JobsService/GetJob", "/v1/JobsService/Nothing", "/nothing"):
            with pytest.raises(InvalidStatus) as caught:
                async with site.socket(path):
                    pass
            assert caught.value.response.status_code == 501


async def test_a_broken_stream_is_resumed():
    talk = speech(*(seconds for _ in range(4) for seconds in (0.7, 0.9)))
    async with with_console(serving, ScriptedEngine(samples_as_text)) as (_, site):
        async with site.socket() as ws:
            await ws.send(config())
            session = (await receive(ws))["started"]["sessionId"]
            for part in cut(talk[: len(talk) // 2], [3200]):
                await ws.send(part)
            got = await until(ws, "segment")
            ws.transport.abort()
        async with site.socket() as ws:
            await ws.send(
                json.dumps({"config": {"resumeSessionId": session, "resumeAfterSequence": got[-1]["sequence"]}})
            )
            started = await receive(ws)
            assert started["started"]["resumed"]
            for part in cut(talk[int(started["acknowledgedBytes"]) :], [3200]):
                await ws.send(part)
            await ws.send(END)
            more, _ = await closed(ws)
        async with site.socket() as ws:
            await ws.send(config())
            await ws.send(talk)
            await ws.send(END)
            whole, _ = await closed(ws)
    assert texts(got + more) == texts(whole)
    assert len(texts(whole)) == 4


async def test_a_socket_is_read_only_as_fast_as_the_engine_takes_its_audio():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site), site.socket() as ws:
        await ws.send(config(mode="STREAM_MODE_FILE"))
        n_sent = 0

        async def send() -> None:
            nonlocal n_sent
            for _ in range(2000):
                await ws.send(bytes(256 * 1024))
                n_sent += 1

        # 500 MB; the server holds 6 minutes of audio (12 MB), and buffers on the way hold a few.
        sending, before = asyncio.create_task(send()), -1
        while n_sent != before:
            before = n_sent
            await awake(1.0)
        assert not sending.done()
        assert 20 < n_sent < 400
        engine.gate.set()
        async with asyncio.timeout(30):
            while n_sent == before:  # noqa: ASYNC110 - a counter sets no event
                await asyncio.sleep(0.01)
        sending.cancel()


async def test_a_peer_that_does_not_read_loses_its_connection_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(port, "UNREAD_S", 1.0)
    engine = ScriptedEngine(lambda call: " ".join(map(str, range(20_000))))  # 100 kB
    async with with_console(serving, engine) as (_, site):
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", site.port))
        reader, writer = await asyncio.open_connection(sock=deaf)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
        writer.write(b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(frame(1, config().encode()))

        async def send() -> None:
            for part in cut(speech(*(0.3, 0.9) * 500), [32_000]):
                writer.write(frame(2, part))
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), 30)
        async with site.socket() as other:
            await other.send(config())
            await other.send(tone(1.0))
            await other.send(END)
            got, code = await closed(other)
        assert (len(texts(got)), code) == (1, 1000)
        writer.transport.abort()


def frame(opcode: int, payload: bytes) -> bytes:
    """A frame of a WebSocket, with a mask of zeros."""
    return bytes([0x80 | opcode, 0x80 | 126]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def test_open_streams_get_their_finals_when_the_server_stops():
    engine = ScriptedEngine(lambda call: "hello")
    async with with_console(serving, engine, drain_timeout_s=10) as (served, site), site.socket() as ws:
        await ws.send(config())
        await ws.send(tone(1.0) + silence(0.1))
        await until(ws, "speechActivity")
        stopping = asyncio.create_task(served.server.stop())
        got = await until(ws, "warning")
        refused = await site.call("TranscriptionService", "Transcribe", HELLO)
        more, code = await closed(ws)
        await stopping
    assert reason_of_warning(got[-1]) == "DRAINING"
    assert (refused.status, refused.reason) == (503, "DRAINING")
    assert texts(more) == ["hello"]
    assert more[-1]["completed"]["endReason"] == "STREAM_END_REASON_DRAINING"
    assert code == 1000


def reason_of_warning(message: dict[str, Any]) -> str:
    return str(message["warning"]["reason"])
