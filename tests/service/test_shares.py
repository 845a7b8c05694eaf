"""One caller of a thousand requests and one of one, from real channels to a scripted engine and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.harness import Served, pcm, serving
from typeless_grpc.access.methods import RULES
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

MANY, ONE = "the-key-of-a-caller-of-many", "the-key-of-a-caller-of-one"
TWO_CALLERS = {"auth_enabled": True, "api_keys": f"{MANY},{ONE}"}
AUDIO = audio_pb2.AudioSource(
    content=pcm(1.0),
    format=audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000),
)

Ask = Callable[[Served, str], Awaitable[Any]]


def transcribe(served: Served, key: str) -> Awaitable[Any]:
    request = transcription_pb2.TranscribeRequest(audio=AUDIO)
    return served.transcription.Transcribe(request, metadata=(("x-api-key", key),))


def batch(served: Served, key: str) -> Awaitable[Any]:
    request = transcription_pb2.BatchTranscribeRequest(items=[transcription_pb2.BatchItem(audio=AUDIO)])
    return served.transcription.BatchTranscribe(request, metadata=(("x-api-key", key),))


async def outcome(call: Awaitable[Any]) -> CallFailed | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error)
    return None


@pytest.mark.parametrize("ask", [transcribe, batch])
async def test_a_caller_of_a_thousand_requests_leaves_room_for_one_of_one(ask: Ask):
    engine = ScriptedEngine()
    engine.gate.clear()
    # A client opens its calls before the server has told it how many a connection may have.
    async with serving(engine, max_calls_per_connection=2000, **TWO_CALLERS) as served:
        many = [asyncio.create_task(outcome(ask(served, MANY))) for _ in range(1000)]
        await engine.until(n_calls=48)
        one = asyncio.create_task(outcome(ask(served, ONE)))
        await engine.until(n_calls=49)
        engine.gate.set()
        assert await one is None
        refused = [failed for failed in await asyncio.gather(*many) if failed is not None]
    assert {(failed.code.name, failed.reason) for failed in refused} == {("RESOURCE_EXHAUSTED", "SHARE_USED_UP")}
    assert all(failed.retry_after_s for failed in refused)


@pytest.mark.parametrize("method", [method for method, rule in RULES.items() if rule.takes_slot])
async def test_a_call_without_a_slot_is_refused_before_its_request_is_read(method: str):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, riva_enabled=True, google_enabled=True, **TWO_CALLERS) as served:
        held = [asyncio.create_task(outcome(transcribe(served, MANY))) for _ in range(48)]
        await engine.until(n_calls=48)
        key = (("x-api-key", MANY),)
        call = served.channel.stream_unary(method)(metadata=key)  # sends nothing
        refused = await outcome(call)
        engine.gate.set()
        assert await asyncio.gather(*held) == [None] * 48
    assert refused is not None
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "SHARE_USED_UP")


async def test_a_request_that_arrives_slowly_holds_no_slot():
    engine = ScriptedEngine()
    async with serving(engine, **TWO_CALLERS) as served:
        method = "/typeless.v1.TranscriptionService/Transcribe"
        slow = [served.channel.stream_unary(method)(metadata=(("x-api-key", MANY),)) for _ in range(48)]
        await asyncio.gather(*(call.wait_for_connection() for call in slow))
        assert await outcome(transcribe(served, MANY)) is None
        for call in slow:
            call.cancel()


async def test_a_caller_alone_has_most_of_the_held_audio_and_another_the_rest():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, max_held_audio_s=4.0, **TWO_CALLERS) as served:
        held = [asyncio.create_task(outcome(transcribe(served, MANY))) for _ in range(3)]
        await engine.until(n_calls=3)
        refused = await outcome(transcribe(served, MANY))
        one = asyncio.create_task(outcome(transcribe(served, ONE)))
        await engine.until(n_calls=4)
        full = await outcome(transcribe(served, ONE))
        engine.gate.set()
        assert await asyncio.gather(*held, one) == [None] * 4
    assert refused is not None
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "SHARE_USED_UP")
    assert full is not None
    assert (full.code.name, full.reason) == ("RESOURCE_EXHAUSTED", "SHARE_USED_UP")
