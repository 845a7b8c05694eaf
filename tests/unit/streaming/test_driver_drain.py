"""How a stream ends when its server drains."""

from __future__ import annotations

import asyncio

import pytest

from tests.speech import samples_as_text, silence, speech, tone
from tests.unit.idle import until_idle
from tests.unit.streaming.driver_bench import bench
from typeless_grpc.streaming import events
from typeless_grpc.streaming.events import Completed, Progress, SpeechStart, Warned
from typeless_grpc.streaming.planner import PlanOptions


@pytest.mark.parametrize(
    ("talk", "is_attached", "waits"),
    [
        pytest.param(tone(1.0), True, True, id="until someone has spoken for too long"),
        pytest.param(tone(1.0), False, False, id="not for a caller that is not there"),
        pytest.param(speech(1.0, 1.0), True, False, id="not in a pause"),
    ],
)
async def test_a_drain_waits_for_a_pause(talk: bytes, is_attached: bool, waits: bool):
    async with bench() as b:
        await b.say(talk)
        await b.until(SpeechStart)
        await until_idle()
        if not is_attached:
            b.stream.detach()
        b.stream.drain(5.0)
        b.clock.advance(4.9)
        b.stream.tick()
        assert b.stream.has_ended is not waits
        b.clock.advance(0.2)
        b.stream.tick()
        await b.stream.put(tone(1.0))
        completed = await b.until(Completed)
    assert completed.end_reason is events.EndReason.DRAINING
    assert completed.transcript.text == b.finals()[0]
    assert b.got[-1].acknowledged_bytes == len(talk)


async def test_no_more_of_a_recording_is_taken_than_the_engine_would_finish_in_a_drain():
    talk = speech(*[4.0, 1.0] * 60)
    async with bench(samples_as_text, segmentation=PlanOptions(), max_waiting_bytes=32_000, max_backlog_s=10.0) as b:
        b.engine.gate.clear()
        b.engine.backlog_s = 11.0
        talking = asyncio.create_task(b.say(talk, 32_000))
        await b.engine.until(n_calls=1)
        await until_idle()
        taken = b.stream.acknowledged_bytes
        await asyncio.sleep(0.1)
        assert b.stream.acknowledged_bytes <= taken + 64_000 < len(talk)
        b.engine.gate.set()  # it is never so busy that nothing is taken
        await asyncio.wait_for(talking, 20)
        assert isinstance((await b.rest())[-1], Completed)


async def test_after_a_while_a_drain_ends_audio_between_two_words():
    async with bench() as b:
        await b.say(tone(1.0))
        await b.until(SpeechStart)
        b.stream.drain(5.0)
        b.clock.advance(3.0)
        await b.say(tone(0.5))
        await until_idle()
        assert not b.stream.has_ended
        await b.say(silence(0.1))
        await b.until(Completed)
    assert b.finals()


async def test_a_request_that_waits_when_the_audio_ends_is_not_taken():
    async with bench(max_waiting_bytes=1000) as b:
        await b.stream.put(tone(0.5))
        waiting = asyncio.create_task(b.stream.put(tone(0.5)))
        b.stream.drain(0.0)
        await waiting
        completed = await b.until(Completed)
    assert completed.transcript.audio_s == 0.5


async def test_half_a_sample_at_the_end_of_a_drain_is_no_warning():
    async with bench() as b:
        await b.stream.put(bytes(3201))
        b.stream.drain(0.0)
        await b.until(Completed)
    assert not [entry for entry in b.got if isinstance(entry.event, Warned)]


async def test_progress_of_a_drained_recording_never_reaches_the_end():
    async with bench(segmentation=PlanOptions()) as b:
        await b.say(speech(1.0, 1.0))
        b.stream.drain(0.0)
        await b.until(Completed)
    assert all(entry.event.fraction < 1 for entry in b.got if isinstance(entry.event, Progress))
