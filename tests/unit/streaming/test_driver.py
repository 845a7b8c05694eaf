"""One stream at work, around a scripted engine and a clock that the tests set."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.speech import cut, samples_as_text, silence, speech, tone
from tests.unit.idle import run_until_complete, until_idle, until_threads_are_idle
from tests.unit.streaming.driver_bench import Bench, bench
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Lane
from typeless_grpc.engine.scripted import EngineCall
from typeless_grpc.engine.stream_audio import BYTES_PER_S, StreamAudio
from typeless_grpc.errors import InvalidInput
from typeless_grpc.speech.transcript import OutputFormat, Transcript
from typeless_grpc.streaming import events, rendering
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Final, Progress, SpeechEnd, SpeechStart, Warned
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.requests import Control, Update
from typeless_grpc.text.finishing import with_renditions


async def test_an_unexpected_error_ends_the_stream_at_once():
    async with bench(lambda call: ZeroDivisionError()) as b:
        await b.say(speech(1.0, 0.8))
        with pytest.raises(ZeroDivisionError):
            await b.rest()


async def test_broken_audio_still_gives_the_finals_before_it():
    float_format = AudioFormat(Encoding.PCM_F32LE, 16_000)
    async with bench(samples_as_text, reader=live_reader(float_format, field="config")) as b:
        loud = np.full(16_000, 0.5, dtype="<f4")
        await b.stream.put(loud.tobytes())
        await b.stream.put(np.full(10, np.nan, dtype="<f4").tobytes())
        with pytest.raises(InvalidInput, match="finite"):
            await b.rest()
    assert len(b.finals()) == 1
    assert not [entry for entry in b.got if isinstance(entry.event, Completed)]


async def test_requests_wait_for_room_and_acknowledgement_follows():
    async with bench(max_waiting_bytes=1000) as b:
        await b.stream.put(bytes(1500))
        waiting = asyncio.create_task(b.stream.put(bytes(10)))
        assert b.stream.acknowledged_bytes == 1500
        await waiting
        assert b.stream.acknowledged_bytes == 1510


async def test_controls_wait_for_room_like_audio():
    async with bench(samples_as_text, segmentation=PlanOptions(), max_held_s=1.0, max_waiting_bytes=16_384) as b:
        b.engine.gate.clear()
        await b.stream.put(speech(2.0, 0.5))
        await b.stream.put(Control.FINALIZE)
        await b.stream.put(tone(0.1))  # waits for the engine, and all that follows with it
        n_put = 0

        async def put_often() -> None:
            nonlocal n_put
            for _ in range(100):
                await b.stream.put(Control.FINALIZE)
                n_put += 1

        waiting = asyncio.create_task(put_often())
        await b.engine.until(n_calls=1)
        await until_idle()
        assert 0 < n_put < 20
        b.engine.gate.set()
        await waiting


async def test_a_reader_that_reads_nothing_stops_what_is_taken():
    async with bench(lambda call: "x", max_unread_events=8, max_waiting_bytes=4096) as b:

        async def say_all() -> None:
            await b.say(speech(*[0.3, 0.9] * 30))
            await b.stream.put(Control.END)

        putting = asyncio.create_task(say_all())
        await b.engine.until(n_calls=2)
        await until_idle()
        assert not putting.done()
        assert b.stream.journal.last_sequence < 20
        await b.until(Completed)
        await putting
    assert len(b.finals()) == 30


async def test_an_idle_stream_is_warned_then_ended_and_keep_alive_prevents_it():
    async with bench(idle_timeout_s=30.0) as b:
        b.clock.advance(21)
        b.stream.tick()
        assert (await b.until(Warned)).error.reason == "STREAM_IDLE"
        await b.stream.put(Control.KEEP_ALIVE)
        b.clock.advance(19)
        b.stream.tick()
        b.clock.advance(2)
        b.stream.tick()
        b.stream.tick()
        b.clock.advance(10)
        b.stream.tick()
        await b.until(Completed)
    assert len([entry for entry in b.got if isinstance(entry.event, Warned)]) == 2


async def test_a_stream_without_a_call_is_not_idle():
    async with bench(idle_timeout_s=30.0) as b:
        b.stream.detach()
        b.clock.advance(100)
        b.stream.tick()
        assert b.stream.journal.last_sequence == 1


async def test_a_call_that_leaves_an_event_unread_is_stuck_after_a_while():
    async with bench(idle_timeout_s=30.0) as b:
        await b.until(events.Started)  # and does not ask for the next
        b.clock.advance(30)
        assert not b.stream.is_stuck
        b.clock.advance(1)
        assert b.stream.is_stuck
        b.stream.attach()  # by another call
        assert not b.stream.is_stuck


async def test_closing_stops_all_work():
    async with bench(interim_interval_s=0.2) as b:
        b.engine.gate.clear()
        await b.say(speech(1.0, 0.3))
        await b.engine.until(n_calls=1)
        await b.stream.close()
        assert b.engine.n_cancelled == len(b.engine.calls)


async def test_progress_of_a_file_comes_while_the_engine_works_and_never_falls():
    async with bench(lambda call: "words", segmentation=PlanOptions()) as b:
        b.engine.gate.clear()
        await b.say(speech(*[6.0, 0.6] * 20), 64_000)
        await b.engine.until(n_calls=1)
        for _ in range(3):
            b.clock.advance(1.0)
            b.stream.tick()
            await b.until(Progress)
        b.engine.gate.set()
        seen = await b.rest()
    fractions = [event.fraction for event in seen if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert isinstance(seen[-2], Progress)
    assert {call.ticket.lane for call in b.engine.calls} == {Lane.UNARY}


async def test_progress_comes_at_least_once_a_second_while_audio_comes_or_is_decoded():
    async with bench(lambda call: "words", segmentation=PlanOptions()) as b:
        b.engine.gate.clear()
        reported_s = [b.clock.now_s()]
        for step in range(80):  # in 20 s, ten of them without audio and with a payload at the engine
            if step < 40:
                await b.stream.put(tone(0.25) if step < 36 else silence(0.25))
            elif step == 40:
                await b.stream.put(Control.FINALIZE)
            await until_threads_are_idle()  # the audio is taken
            b.clock.advance(0.25)
            before = b.stream.journal.last_sequence
            b.stream.tick()
            reported_s += [b.clock.now_s()] * (b.stream.journal.last_sequence > before)
        b.engine.gate.set()
        await b.rest()
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(reported_s)]
    assert max(gaps_s) <= 1.0
    assert reported_s[-1] - reported_s[0] >= 19.0


async def test_a_file_is_expected_to_have_the_language_of_its_first_chunk():
    async with bench(lambda call: "words", segmentation=PlanOptions(), options=DecodeOptions()) as b:
        await b.say(speech(*[6.0, 0.6] * 20), 64_000)
        await b.rest()
    expected = [call.options.expected_language for call in b.engine.calls]
    assert expected[0] == ""
    assert set(expected[1:]) == {"en"}
    assert {call.options.language for call in b.engine.calls} == {None}


async def test_a_caller_whose_request_is_being_checked_is_not_idle():
    async with bench(idle_timeout_s=60.0) as b:
        with b.stream.busy():
            b.clock.advance(100.0)
            b.stream.tick()
            assert not b.stream.has_ended
        b.clock.advance(59.0)
        b.stream.tick()
        assert not b.stream.has_ended
        b.clock.advance(1.0)
        b.stream.tick()
        assert b.stream.has_ended


async def test_renditions_are_made_in_a_thread(monkeypatch):
    threads = []

    def noted(transcript: Transcript, formats: Any, *, words: bool) -> Transcript:
        threads.append(threading.current_thread())
        return with_renditions(transcript, formats, words=words)

    monkeypatch.setattr(rendering, "with_renditions", noted)
    async with bench(options=DecodeOptions(language="en", output_formats=(OutputFormat.SRT,))) as b:
        await b.say(speech(1.0, 1.0))
        completed = (await b.rest())[-1]
    assert isinstance(completed, Completed)
    assert completed.transcript.renditions
    assert threads
    assert threading.main_thread() not in threads


async def test_an_update_changes_the_options_from_the_next_utterance_on():
    async with bench(lambda call: call.options.language or "") as b:
        await b.say(speech(1.0, 0.8, 0.5))
        await b.stream.put(Update(DecodeOptions(language="fr"), EndpointOptions(end_silence_s=1.0)))
        await b.say(speech(0.5, 0.8, 1.0))
        await b.rest()
    assert b.finals() == ["en", "en", "fr"]


@pytest.mark.parametrize("is_file", [False, True], ids=["live", "file"])
async def test_an_update_that_changes_nothing_only_returns_the_options(is_file):
    data = speech(0.9, 0.7, 0.4, 0.3, 1.1, 1.0, 0.2, 0.5, 0.7)
    segmentation = PlanOptions() if is_file else EndpointOptions()

    async def run(n_updates: int) -> tuple[list[str], list[events.Event]]:
        async with bench(samples_as_text, segmentation=segmentation) as b:
            for payload in cut(data, [1600]):
                await b.stream.put(payload)
                for _ in range(n_updates):
                    await b.stream.put(Update(DecodeOptions(language="en"), segmentation))
            seen = await b.rest()
            return b.finals(), [event for event in seen if isinstance(event, events.Configured)]

    without, with_updates = await run(0), await run(1)
    assert with_updates[0] == without[0]
    assert len(with_updates[1]) == len(list(cut(data, [1600])))


@pytest.mark.parametrize("is_file", [False, True], ids=["live", "file"])
async def test_an_update_with_more_padding_needs_no_audio_that_was_dropped(is_file):
    segmentation = PlanOptions() if is_file else EndpointOptions()
    wider = (
        PlanOptions(policy=replace(PlanOptions().policy, padding_s=10.0)) if is_file else EndpointOptions(padding_s=10)
    )
    async with bench(samples_as_text, segmentation=segmentation) as b:
        await b.say(silence(12.0))
        await b.stream.put(Update(DecodeOptions(language="en"), wider))
        await b.say(speech(1.0, 0.8))
        seen = await b.rest()
    assert len(b.finals()) == 1
    assert isinstance(seen[-1], Completed)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30_000), max_size=12), st.booleans())
def test_any_chunking_gives_the_same_events(sizes, is_file):
    data = speech(0.9, 0.7, 0.4, 0.3, 1.1, 1.0, 0.2, 0.5, 0.7)
    segmentation = PlanOptions() if is_file else EndpointOptions()

    async def run(payloads: list[bytes]) -> list[events.Event]:
        async with bench(samples_as_text, segmentation=segmentation) as b:
            for payload in payloads:
                await b.stream.put(payload)
            seen = await b.rest()
        kept = [event for event in seen if isinstance(event, Final | SpeechStart | SpeechEnd)]
        return [*sorted(kept, key=str), seen[-1]]

    whole, cut_up = run_until_complete(run([data])), run_until_complete(run(list(cut(data, [*sizes, 7001]))))
    assert whole[:-1] == cut_up[:-1]
    assert whole[-1].transcript == cut_up[-1].transcript  # type: ignore[union-attr]


def in_two_minds(call: EngineCall) -> str:
    """A text that grows with the audio, and in whose spelling finals and interims do not agree."""
    n = len(call.audio) // 4000
    words = [f"word{i}" if (i + n) % 7 else f"Word{i}" for i in range(n)]
    return " ".join(words).upper() if call.ticket.lane is Lane.LIVE_FINAL else " ".join(words)


async def at_the_pace_of_the_engine(b: Bench, data: bytes) -> None:
    """Send payloads of 100 ms, each once the last one is taken and all decodes are done."""
    for end in range(3200, len(data) + 3200, 3200):
        await b.stream.put(data[end - 3200 : end])
        await until_threads_are_idle()
        assert b.stream.cursors.received_s >= min(end, len(data)) // 2 / 16_000


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 300_000), max_size=8), st.floats(0.1, 0.9))
def test_finals_do_not_depend_on_how_fast_the_audio_comes_with_interims(sizes: list[int], confidence: float):
    data = speech(4.1, 0.8, 2.3, 0.35, 1.1, 1.0, 9.2, 0.7, 1.1, 0.95)

    async def run(*, is_fast: bool) -> list[str]:
        async with bench(in_two_minds, interim_interval_s=0.5) as b:
            b.engine.confidence = confidence
            if is_fast:
                for payload in cut(data, [*sizes, 7001]):
                    await b.stream.put(payload)
            else:
                await at_the_pace_of_the_engine(b, data)
            await b.rest()
        return b.finals()

    paced, fast = run_until_complete(run(is_fast=False)), run_until_complete(run(is_fast=True))
    assert paced == fast
    assert not all(text.isupper() for text in paced)


async def test_the_memory_of_a_long_stream_is_bounded():
    audio = StreamAudio(Admission(AdmissionOptions()))
    async with bench(lambda call: "x", audio=audio) as b:
        for _ in range(60):
            await b.say(speech(5.0, 1.0), 32_000)
            await b.until(Final)
            assert audio.n_bytes < 20 * 2 * BYTES_PER_S


@pytest.mark.parametrize(
    "segmentation", [pytest.param(EndpointOptions(), id="live"), pytest.param(PlanOptions(), id="recordings")]
)
async def test_all_streams_together_are_bounded_and_each_completes(segmentation: Any):
    """Eight callers, and an engine that does not move for a while: what is not taken stays with them."""
    max_s, talk = 20.0, speech(*[1.0, 1.0] * 20)
    audio = StreamAudio(Admission(AdmissionOptions(max_audio_s=max_s)))
    async with AsyncExitStack() as stack:
        benches = [
            await stack.enter_async_context(
                bench(samples_as_text, audio=audio, segmentation=segmentation, max_waiting_bytes=32_000)
            )
            for _ in range(8)
        ]
        for b in benches:
            b.engine.gate.clear()
        talking = [asyncio.create_task(b.say(talk, 32_000)) for b in benches]
        await until_idle()
        await asyncio.sleep(0.2)  # for the threads that look for speech
        held = audio.n_bytes / BYTES_PER_S
        taken_s = sum(b.stream.acknowledged_bytes for b in benches) / 32_000
        assert taken_s < 8 * 40
        assert held <= max_s + 2 * 40 + 8 * 1.1  # one that goes on without room, and what waits to be looked at
        for b in benches:
            b.engine.gate.set()
        await asyncio.wait_for(asyncio.gather(*(b.rest() for b in benches), *talking), 30)
        assert [b.got[-1].cursors.received_s for b in benches] == [40.0] * 8
        assert len({tuple(b.finals()) for b in benches}) == 1
    assert audio.n_bytes == 0


async def test_a_stream_that_failed_or_was_closed_holds_nothing():
    audio = StreamAudio(Admission(AdmissionOptions()))
    async with bench(audio=audio) as b:
        await b.say(tone(1.0))
        assert audio.n_bytes > 0
        b.stream.fail(InvalidInput("audio", "is none"))
        await b.stream.put(tone(1.0))
        await until_idle()
        assert audio.n_bytes == 0
    async with bench(audio=audio) as b:
        await b.stream.put(tone(1.0))  # and the loop has not begun when it is closed
    assert audio.n_bytes == 0
