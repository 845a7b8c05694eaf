"""Sizes at a limit and just over it, as docs/limits.md has them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.harness import Served, pcm, request, serving
from tests.service.access import outcome
from tests.service.streams import audio, config
from tests.wire.http2 import PREFACE, settings
from typeless_grpc import server
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.interceptors.message_size import MAX_FIELDS
from typeless_grpc.pb.v1 import transcription_pb2

CHECK = "/grpc.health.v1.Health/Check"
TRANSCRIBE = "/typeless.v1.TranscriptionService/Transcribe"
STREAM = "/typeless.v1.TranscriptionService/StreamTranscribe"
LARGEST_BYTES = 65_536


async def sent(served: Served, data: bytes, method: str = TRANSCRIBE) -> str | None:
    """Send one message of these bytes; return the reason of the refusal: "" without one, None if it succeeds."""
    try:
        async for _ in served.channel.stream_stream(method)(iter([data])):
            pass
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error).reason or ""
    return None


def padded(n_bytes: int) -> bytes:
    """A good request of exactly so many bytes, with a field that the contract does not have."""
    good = request(0.1).SerializeToString()
    left = n_bytes - len(good) - 5  # the tag (field 1000, two bytes) and the length (three)
    size = bytes([left & 0x7F | 0x80, left >> 7 & 0x7F | 0x80, left >> 14])
    return good + b"\xc2\x3e" + size + bytes(left)


@pytest.mark.parametrize(
    ("n_bytes", "reason"),
    [
        (LARGEST_BYTES, None),
        (LARGEST_BYTES + 1, "MESSAGE_TOO_LARGE"),
        (LARGEST_BYTES * 9 // 8, "MESSAGE_TOO_LARGE"),
        (LARGEST_BYTES * 9 // 8 + 1, ""),
    ],
)
async def test_a_message_may_have_exactly_its_limit(n_bytes: int, reason: str | None):
    data = padded(n_bytes)
    assert len(data) == n_bytes
    async with serving(ScriptedEngine(), max_message_bytes=LARGEST_BYTES) as served:
        assert await sent(served, data) == reason
        assert await sent(served, request(0.1).SerializeToString()) is None


@pytest.mark.parametrize(("n_fields", "is_refused"), [(MAX_FIELDS, False), (MAX_FIELDS + 1, True)])
async def test_a_message_may_have_exactly_its_number_of_fields(n_fields: int, is_refused: bool):
    async with serving(ScriptedEngine()) as served:
        reason = await sent(served, b"\xc0\x3e\x01" * n_fields)
    assert (reason == "TOO_MANY_FIELDS") is is_refused


async def test_a_call_may_have_exactly_64_headers():
    async with serving(ScriptedEngine()) as served:
        # gRPC's client adds some of its own.
        found = [await outcome(served, CHECK, *[(f"x-{i}", "1") for i in range(n)]) for n in range(56, 66)]
    n_accepted = found.index(next(error for error in found if error))
    assert n_accepted > 0
    first, *others = found[n_accepted:]
    assert first is not None
    assert (first.reason, "has 65 headers" in first.message) == ("TOO_MANY_HEADERS", True)
    assert all(error and error.reason == "TOO_MANY_HEADERS" for error in others)


@pytest.mark.parametrize(("n_bytes", "is_refused"), [(15_500, False), (16_500, True)])
async def test_headers_may_have_16_kib(n_bytes: int, is_refused: bool):
    async with serving(ScriptedEngine()) as served:
        error = await outcome(served, CHECK, ("x-note", "x" * n_bytes))
    assert (error is not None) is is_refused
    if error is not None:
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("n_items", "reason"), [(3, None), (4, "TOO_MANY_ITEMS")])
async def test_a_batch_may_have_exactly_its_number_of_items(n_items: int, reason: str | None):
    item = transcription_pb2.BatchItem(audio=request(0.1).audio)
    batch = transcription_pb2.BatchTranscribeRequest(items=[item] * n_items)
    async with serving(ScriptedEngine(), max_batch_items=3) as served:
        got = await sent(served, batch.SerializeToString(), "/typeless.v1.TranscriptionService/BatchTranscribe")
    assert got == reason


@pytest.mark.parametrize(("n_more_bytes", "reason"), [(0, None), (2, "AUDIO_TOO_LONG")])
async def test_a_recording_may_have_exactly_its_length(n_more_bytes: int, reason: str | None):
    wanted = request(2.0)
    wanted.audio.content += bytes(n_more_bytes)
    async with serving(ScriptedEngine(), max_audio_s=2, max_stream_s=2) as served:
        assert await sent(served, wanted.SerializeToString()) == reason


@pytest.mark.parametrize(("n_more_bytes", "reason"), [(0, None), (2, "AUDIO_TOO_LONG")])
async def test_a_stream_may_have_exactly_its_length(n_more_bytes: int, reason: str | None):
    requests = [config(), *audio(pcm(2.0) + bytes(n_more_bytes))]
    async with serving(ScriptedEngine(), max_audio_s=2, max_stream_s=2) as served:
        try:
            async for _ in served.transcription.StreamTranscribe(iter(requests)):
                pass
            got = None
        except grpc.aio.AioRpcError as error:
            got = CallFailed.of(error).reason
    assert got == reason


async def test_a_client_that_never_acknowledges_the_settings_is_disconnected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "SETTINGS_TIMEOUT_MS", 300)
    async with serving(ScriptedEngine()) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.target.rpartition(":")[2]))
        writer.write(PREFACE + settings())
        async with asyncio.timeout(15):
            await reader.read()  # to the end
        writer.close()
        assert await outcome(served, CHECK) is None
