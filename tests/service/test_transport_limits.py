"""What gRPC itself is told to bound: bytes of headers, pings, calls on one connection."""

from __future__ import annotations

import asyncio
import socket

import grpc

from tests.harness import request, serving
from tests.service.access import outcome
from typeless_grpc.engine.scripted import ScriptedEngine

CHECK = "/grpc.health.v1.Health/Check"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"


async def test_headers_beyond_the_bytes_are_refused_and_others_go_on():
    async with serving(ScriptedEngine(), max_metadata_bytes=2048) as served:
        small = await outcome(served, CHECK, ("x-note", "x" * 1000))
        large = await outcome(served, CHECK, ("x-note", "x" * 4000))
        again = await outcome(served, CHECK)
    assert small is None
    assert large is not None
    assert large.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert again is None


async def test_a_client_that_pings_without_end_is_cut_off():
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
                    piece = await reader.read(4096)
                except ConnectionError:
                    break
                if not piece:
                    break
                received += piece
        writer.close()
    assert b"too_many_pings" in received


async def test_more_calls_than_a_connection_takes_wait_for_their_turn():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, max_calls_per_connection=2) as served:
        calls = [served.transcription.Transcribe(request()) for _ in range(3)]
        await engine.until(n_asked=2)
        # A call on another connection gets through while the third waits in its client.
        with socket.create_connection(("127.0.0.1", int(served.target.rpartition(":")[2]))):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(served.target, options=options) as another:
                await another.unary_unary(CHECK)(b"")
        assert len(engine.asked) == 2
        engine.gate.set()
        await asyncio.gather(*calls)
    assert len(engine.asked) == 3
