"""Streams of Google's clients, around a scripted engine."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.harness import AUDIO, pcm, serving
from tests.service.google import (
    BOTH,
    EACH,
    audio_of,
    billed_s,
    end_s,
    failed,
    opening,
    says,
    streamed,
    streaming,
)
from tests.service.riva import after_silence
from tests.speech import silence, speech
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.google.messages import V1, Version

WAV = (AUDIO / "en_short.wav").read_bytes()


@EACH
async def test_live_speech_gives_interims_finals_and_what_to_bill(version: Version):
    engine = ScriptedEngine(lambda call: f"{call.audio.size // 16_000} and more words that change")
    async with serving(engine, stream_interim_interval_s=0.2) as served:
        requests = [opening(version, interim_results=True), *audio_of(version, speech(3.0, 1.0, 2.0))]
        responses = await streamed(served, version, requests)
    results = [response.results[0] for response in responses[:-1]]
    assert all(len(response.results) == 1 for response in responses[:-1])
    finals = [result for result in results if result.is_final]
    interims = [result for result in results if not result.is_final]
    assert [result.alternatives[0].transcript[:1] == " " for result in finals] == [False, True]
    assert interims
    assert all(result.alternatives[0].confidence == pytest.approx(0.9) for result in results)
    assert end_s(version, finals[0]) < end_s(version, finals[1])
    assert (len(responses[-1].results), billed_s(version, responses[-1])) == (0, 6)


@BOTH
async def test_speech_events_have_messages_of_their_own(version: Version):
    async with serving(says("one")) as served:
        requests = [opening(version, enable_voice_activity_events=True), *audio_of(version, speech(1.0, 1.0, 1.0))]
        responses = await streamed(served, version, requests)
    types = version.enum("StreamingRecognizeResponse.SpeechEventType")
    events = [types[one.speech_event_type] for one in responses if one.speech_event_type]
    assert events == ["SPEECH_ACTIVITY_BEGIN", "SPEECH_ACTIVITY_END"] * 2
    assert not any(one.speech_event_type and one.results for one in responses)


async def test_a_single_utterance_ends_the_stream():
    async with serving(says("one")) as served:
        call = streaming(served, V1)
        await call.write(opening(V1, single_utterance=True))
        for request in audio_of(V1, speech(1.0, 1.0)):
            await call.write(request)
        responses = [response async for response in call]
    types = V1.enum("StreamingRecognizeResponse.SpeechEventType")
    assert [types[one.speech_event_type] for one in responses if one.speech_event_type] == ["END_OF_SINGLE_UTTERANCE"]
    assert [result.is_final for one in responses for result in one.results] == [True]


@BOTH
@pytest.mark.parametrize("name", ["speech_start_timeout", "speech_end_timeout"])
async def test_a_voice_activity_timeout_closes_the_stream(version: Version, name: str):
    async with serving(says("one")) as served:
        call = streaming(served, version)
        await call.write(opening(version, voice_activity_timeout={name: {"nanos": 400_000_000}}))
        for request in audio_of(version, speech(1.0, 1.0) if name == "speech_end_timeout" else silence(1.0)):
            await call.write(request)
        async with asyncio.timeout(30):
            responses = [response async for response in call]
    finals = [result.alternatives[0].transcript for one in responses for result in one.results]
    assert finals == (["one"] if name == "speech_end_timeout" else [])
    types = version.enum("StreamingRecognizeResponse.SpeechEventType")
    events = [types[one.speech_event_type] for one in responses if one.speech_event_type]
    assert events == ([] if version.is_v2 else ["SPEECH_ACTIVITY_TIMEOUT"])


async def test_speech_that_continues_meets_no_timeout():
    async with serving(says("one")) as served:
        timeouts = {"speech_start_timeout": {"seconds": 1}, "speech_end_timeout": {"seconds": 1}}
        call = streaming(served, V1)
        await call.write(opening(V1, voice_activity_timeout=timeouts))
        for request in audio_of(V1, speech(1.0)):
            await call.write(request)
        await asyncio.sleep(1.3)
        await call.done_writing()
        responses = [response async for response in call]
    assert not any(one.speech_event_type for one in responses)


@EACH
async def test_the_configuration_comes_first_and_once(version: Version):
    async with serving(ScriptedEngine()) as served:
        error = await failed(streamed(served, version, audio_of(version, pcm(0.1))))
        requests = [opening(version), *audio_of(version, pcm()), opening(version)]
        again = await failed(streamed(served, version, requests))
    assert (error.reason, again.reason) == ("STREAM_ORDER", "STREAM_ORDER")


async def test_a_caller_that_falls_silent_and_a_stream_that_is_too_long_end_as_googles_do():
    clock = FakeClock()
    async with serving(says("one"), clock=clock, stream_idle_timeout_s=5.0, max_stream_s=3.0) as served:
        call = streaming(served, V1)
        for request in [opening(V1), *audio_of(V1, speech(1.0, 1.0))]:
            await call.write(request)
        assert (await call.read()).results[0].is_final
        idle = await failed(after_silence(call, clock))
        long = await failed(streamed(served, V1, [opening(V1), *audio_of(V1, speech(4.0))]))
    assert (idle.code, idle.reason) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")
    assert (long.code, long.reason) == (grpc.StatusCode.OUT_OF_RANGE, "AUDIO_TOO_LONG")


async def test_a_broken_call_ends_its_session_and_frees_its_audio():
    engine = ScriptedEngine()
    engine.stuck = frozenset({Lane.LIVE_FINAL})
    async with serving(engine, max_streams_per_caller=1) as served:
        call = streaming(served, V1)
        for request in [opening(V1), *audio_of(V1, speech(2.0, 1.0))]:
            await call.write(request)
        await engine.until(n_calls=2)
        call.cancel()
        await engine.until(n_cancelled=1)
        engine.stuck = frozenset()
        assert await streamed(served, V1, [opening(V1), *audio_of(V1, speech(2.0, 1.0))])
