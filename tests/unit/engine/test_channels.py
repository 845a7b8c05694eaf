from __future__ import annotations

import asyncio

import numpy as np
import pytest

from typeless_grpc.engine.channels import ChannelEngine, merge_channels
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Recognition, Ticket
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed
from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason, Transcript


def channels(n_channels: int, n_samples: int = 16_000) -> np.ndarray:
    return np.stack([np.full(n_samples, i / 10, dtype=np.float32) for i in range(n_channels)])


def loudness(call: EngineCall) -> str:
    return f"channel {round(float(call.audio[0]) * 10)}"


async def test_a_recording_with_one_channel_is_passed_on_unchanged():
    inner = ScriptedEngine()
    await ChannelEngine(inner).transcribe(channels(1)[0], DecodeOptions(), Ticket())
    assert inner.calls[0].audio.shape == (16_000,)


async def test_each_channel_is_transcribed_as_a_recording_of_its_own():
    inner = ScriptedEngine(loudness)
    recognition = await ChannelEngine(inner).transcribe(channels(3), DecodeOptions(), Ticket())
    assert [(one.channel, one.text) for one in recognition.transcript.segments] == [
        (0, "channel 0"),
        (1, "channel 1"),
        (2, "channel 2"),
    ]
    assert recognition.n_chunks == 3
    assert recognition.transcript.audio_s == 1.0


async def test_a_failure_in_one_channel_cancels_the_others():
    inner = ScriptedEngine(lambda call: EngineFailed("broken") if call.audio[0] else "fine")
    with pytest.raises(EngineFailed):
        await ChannelEngine(inner).transcribe(channels(2), DecodeOptions(), Ticket())


async def test_cancelling_stops_all_channels():
    inner = ScriptedEngine()
    inner.gate.clear()
    call = asyncio.ensure_future(ChannelEngine(inner).transcribe(channels(4), DecodeOptions(), Ticket()))
    await inner.until(n_calls=4)
    call.cancel()
    await inner.until(n_cancelled=4)


def part(*starts_s: float, language: str, speech_s: float) -> Recognition:
    segments = tuple(Segment(start_s, start_s + 0.5, str(start_s), language, 0.9, 0.1) for start_s in starts_s)
    suppressed = (Suppressed(segments[0], SuppressionReason.NO_SPEECH),) if segments else ()
    transcript = Transcript(segments, suppressed, language, 0.8, audio_s=10.0, speech_s=speech_s, model="m")
    return Recognition(transcript, queue_s=speech_s, n_chunks=2, chunking=Chunking.VAD)


def test_segments_are_ordered_by_time_and_have_their_channel():
    whole = merge_channels([part(1.0, 5.0, language="en", speech_s=7.0), part(0.5, 3.0, language="es", speech_s=4.0)])
    assert [(one.start_s, one.channel) for one in whole.transcript.segments] == [(0.5, 1), (1.0, 0), (3.0, 1), (5.0, 0)]
    assert [one.segment.channel for one in whole.transcript.suppressed] == [1, 0]
    assert (whole.transcript.language, whole.transcript.speech_s) == ("en", 10.0)
    assert (whole.queue_s, whole.n_chunks, whole.chunking) == (7.0, 4, Chunking.VAD)
