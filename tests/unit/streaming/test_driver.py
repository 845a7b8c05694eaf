"""One stream at work, around a scripted engine and a clock that the tests set."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.speech import cut, samples_as_text, silence, speech, tone, words_as_they_come
from tests.unit.idle import run_until_complete, until_idle
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import LiveReader, live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Lane, VoiceActivityOptions
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.engine.stream_audio import BYTES_PER_S, StreamAudio
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, Overloaded
from typeless_grpc.speech.transcript import OutputFormat, Transcript
from typeless_grpc.streaming import events, interims, rendering
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Entry, Final, Interim, Progress, SpeechEnd, SpeechStart, Warned
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.requests import Control, Update
from typeless_grpc.text.finishing import with_renditions

RAW = AudioFormat(Encoding.PCM_S16LE, 16_000)
# Of silence: long enough for a speculative decode, too short to end the utterance.
HESITATION_S = (EndpointOptions().padding_s + EndpointOptions().end_silence_s) / 2


class Bench:
    """A stream, and everything around it."""

    def __init__(self, engine: ScriptedEngine, clock: FakeClock, stream: Stream, slept: list[float]) -> None:
        self.engine, self.clock, self.stream, self.slept = engine, clock, stream, slept
        self._entries = stream.events_after(0)
        self.got: list[Entry] = []

    async def say(self, data: bytes, n_bytes: int = 3200) -> None:
        for payload in cut(data, [n_bytes]):
            await self.stream.put(payload)
            self.clock.advance(len(payload) / 32_000)

    async def until(self, kind: type, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """Read up to an event of this kind."""
        async for entry in self._entries:
            self.got.append(entry)
            if isinstance(entry.event, kind) and wanted(entry.event):
                return entry.event
        raise AssertionError(f"no {kind.__name__} came")

    async def rest(self) -> list[events.Event]:
        """End the audio, and all events there were."""
        await self.stream.put(Control.END)
        async for entry in self._entries:
            self.got.append(entry)
        return [entry.event for entry in self.got]

    def finals(self) -> list[str]:
        return [entry.event.segment.text for entry in self.got if isinstance(entry.event, Final)]

    def calls_in(self, lane: Lane) -> list[EngineCall]:
        return [call for call in self.engine.calls if call.ticket.lane is lane]


@asynccontextmanager
async def bench(
    script: Any = words_as_they_come,
    audio: StreamAudio | None = None,
    reader: LiveReader | None = None,
    sleep: Callable[[float], Awaitable[Any]] | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    engine, clock, slept = ScriptedEngine(script), FakeClock(100.0), []

    async def advance(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(engine, LoudnessDetector(), threads, clock, sleep=sleep or advance)
        if audio is not None:
            dependencies = replace(dependencies, audio=audio)
        wanted = StreamOptions(**{"options": DecodeOptions(language="en"), "segmentation": EndpointOptions()} | options)
        stream = Stream(dependencies, reader or live_reader(RAW, field="config"), wanted)
        stream.attach()
        try:
            yield Bench(engine, clock, stream, slept)
        finally:
            await stream.close()


async def test_finals_and_interims_have_their_lane_caller_and_options():
    options = DecodeOptions(language="en", word_timestamps=True, prompt="Zelvari")
    async with bench(options=options, interim_interval_s=0.5, caller="key:7") as b:
        await b.say(tone(1.0))
        await b.until(Interim)
        await b.say(silence(1.0))
        await b.until(Final)
        (final,) = b.calls_in(Lane.LIVE_FINAL)
        interim = b.calls_in(Lane.LIVE_INTERIM)[0]
    assert final.options == options
    assert interim.options == replace(options, word_timestamps=False)
    assert final.ticket.caller == interim.ticket.caller == "key:7"
    assert interim.ticket.deadline_s is not None
    assert final.ticket.deadline_s is None


@pytest.mark.parametrize(
    ("padding_s", "lead_s"),
    [pytest.param(None, 0.3, id="little, for speed"), pytest.param(1.0, 1.0, id="as requested")],
)
async def test_an_interim_includes_this_much_audio_before_the_speech(padding_s: float | None, lead_s: float):
    options = DecodeOptions(language="en", voice_activity=VoiceActivityOptions(speech_padding_s=padding_s))
    segmentation = EndpointOptions() if padding_s is None else EndpointOptions(padding_s=padding_s, context_s=padding_s)
    async with bench(segmentation=segmentation, options=options, interim_interval_s=0.5) as b:
        await b.say(silence(2.0) + tone(1.0))
        await b.until(Interim)
    audio = b.calls_in(Lane.LIVE_INTERIM)[0].audio
    assert np.flatnonzero(audio)[0] / 16_000 == pytest.approx(lead_s, abs=0.05)


async def test_a_final_is_decoded_once_from_before_the_end_of_the_pause_on():
    async with bench(samples_as_text) as b:
        await b.say(speech(1.0, HESITATION_S))
        await b.engine.until(n_calls=1)
        assert not [e for e in b.got if isinstance(e.event, SpeechEnd)]
        await b.say(silence(0.5))
        await b.until(Final)
    assert len(b.engine.calls) == 1


async def test_a_wrong_speculation_is_cancelled():
    async with bench(samples_as_text) as b:
        b.engine.gate.clear()
        await b.say(speech(1.0, HESITATION_S))
        await b.engine.until(n_calls=1)
        await b.say(tone(0.5))
        await b.engine.until(n_cancelled=1)
        b.engine.gate.set()
        await b.rest()
    assert len(b.finals()) == 1
    assert b.finals()[0].startswith(f"{round((1.0 + HESITATION_S + 0.5) * 16_000)} ")


async def test_a_busy_engine_does_not_speculate_and_returns_the_same():
    async with bench(samples_as_text) as b:
        await b.say(speech(1.0, 0.8, 1.0))
        await b.rest()
    async with bench(samples_as_text) as busy:
        busy.engine.backlog_s = 2.0
        await busy.say(speech(1.0, 0.8, 1.0))
        await busy.rest()
        assert len(busy.engine.calls) == 2
    assert busy.finals() == b.finals()


async def test_a_busy_engine_speculates_once_the_end_is_likely():
    async with bench(samples_as_text) as b:
        b.engine.backlog_s = 2.0
        await b.say(speech(1.0, EndpointOptions().likely_after_s + 0.1))
        await b.engine.until(n_calls=1)
        assert not [e for e in b.got if isinstance(e.event, SpeechEnd)]
        await b.say(silence(0.5))
        await b.until(Final)
    assert len(b.engine.calls) == 1


async def test_a_failed_speculation_is_decoded_again():
    n_calls = 0

    def script(call: EngineCall) -> str | BaseException:
        nonlocal n_calls
        n_calls += 1
        return EngineFailed("no") if n_calls == 1 else "hello"

    async with bench(script) as b:
        await b.say(speech(1.0, 0.8))
        await b.rest()
    assert b.finals() == ["hello"]


async def test_a_stream_decodes_one_interim_at_a_time():
    async with bench(interim_interval_s=0.2) as b:
        b.engine.gate.clear()
        await b.say(tone(1.0))
        await b.engine.until(n_calls=1)
        await b.say(tone(3.0))
        assert len(b.engine.calls) == 1
        b.engine.gate.set()
        await b.until(Interim)
        await b.say(tone(7.0))  # it took 3 s, so the next one waits twice as long
        await b.until(Interim)


def promising(call: EngineCall) -> str:
    """Interims that agree on what the final then says otherwise."""
    return "Good morning to you all" if call.ticket.lane is Lane.LIVE_INTERIM else "Good mourning to everybody"


async def test_a_final_waits_for_the_interims_of_its_utterance_and_keeps_what_they_committed():
    async with bench(promising, interim_interval_s=0.5) as b:
        await b.say(tone(1.4))
        await b.until(Interim, lambda interim: interim.end_s > 0.9)
        b.engine.gate.clear()
        await b.say(tone(0.2) + silence(1.0))
        await b.engine.until(n_calls=4)  # three interims, and the speculation
        await until_idle()
        b.engine.gate.set()
        await b.until(Final)
    assert b.finals() == ["Good morning to everybody"]
    assert b.engine.n_cancelled == 0


async def test_a_final_does_not_wait_for_an_interim_that_does_not_end():
    async with bench(promising, interim_interval_s=0.5) as b:
        b.engine.stuck = frozenset({Lane.LIVE_INTERIM})
        await b.say(speech(1.0, 1.2))
        await b.until(Final)
        await b.engine.until(n_cancelled=1)
    assert b.finals() == ["Good mourning to everybody"]


async def test_a_final_does_not_wait_for_interims_on_a_busy_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interims, "_FINAL_WAITS_S", 3600.0)
    async with bench(promising, interim_interval_s=0.5) as b:
        b.engine.stuck = frozenset({Lane.LIVE_INTERIM})
        b.engine.gate.clear()
        await b.say(speech(1.0, 1.2))
        await b.engine.until(n_calls=2)
        b.engine.backlog_s = 0.1
        b.engine.gate.set()
        await b.until(Final)
    assert b.engine.n_cancelled == 1


@pytest.mark.parametrize("control", [Control.FINALIZE, None], ids=["ended by its caller", "by a pause"])
async def test_on_a_busy_engine_the_end_of_an_utterance_cancels_its_interims(control: Control | None):
    async with bench(interim_interval_s=0.5) as b:
        b.engine.gate.clear()
        await b.say(tone(1.0))
        await b.engine.until(n_calls=1)
        b.engine.backlog_s = 0.1
        await b.stream.put(control or silence(1.0))
        await b.engine.until(n_calls=2, n_cancelled=1)
        b.engine.gate.set()
        await b.until(Final)
    assert not [entry for entry in b.got if isinstance(entry.event, Interim)]


@pytest.mark.parametrize(("backlog_s", "at_least", "at_most"), [(0.0, 7, 12), (0.5, 2, 5), (5.0, 0, 0)])
async def test_interims_come_less_often_under_load(backlog_s, at_least, at_most):
    async with bench(interim_interval_s=0.5) as b:
        b.engine.backlog_s = backlog_s
        for _ in range(50):
            await b.say(tone(0.1))
            await until_idle()  # let a running interim finish
        await b.rest()
        assert at_least <= len(b.calls_in(Lane.LIVE_INTERIM)) <= at_most
    assert len(b.finals()) == 1


@pytest.mark.parametrize("error", [Overloaded("no"), DeadlineExceeded("no"), EngineFailed("no")])
async def test_a_failed_interim_is_not_reported(error):
    async with bench(lambda a: error if a.ticket.lane is Lane.LIVE_INTERIM else "hello", interim_interval_s=0.2) as b:
        await b.say(speech(2.0, 0.8))
        seen = await b.rest()
    assert [type(event) for event in seen if isinstance(event, Interim | Warned)] == []
    assert b.finals() == ["hello"]


async def test_a_final_is_decoded_again_after_an_error_that_may_pass():
    speculation = Overloaded("full", retry_after_s=9.0)
    answers: list[str | BaseException] = [
        speculation,
        Overloaded("full", retry_after_s=3.0),
        Overloaded("full"),
        "hello",
    ]

    async with bench(lambda call: answers.pop(0)) as b:
        b.engine.backlog_s = 9.0
        await b.say(speech(1.0, 0.8))
        await b.rest()
    assert b.finals() == ["hello"]
    assert b.slept[0] == 3.0


async def test_a_final_that_cannot_be_decoded_is_a_warning_and_counts_as_dropped():
    async with bench(lambda call: EngineFailed("The model failed.")) as b:
        await b.say(speech(1.0, 0.8))
        seen = await b.rest()
    assert [event.error.reason for event in seen if isinstance(event, Warned)] == ["ENGINE_FAILED"]
    assert isinstance(seen[-1], Completed)
    lost_s = 1.0 + EndpointOptions().padding_s
    assert b.got[-1].cursors.dropped_s == pytest.approx(lost_s, abs=0.05)


async def test_a_warning_about_lost_audio_carries_cursors_before_the_next_final():
    lost_first = asyncio.Event()

    def script(call: EngineCall) -> str | BaseException:
        return EngineFailed("no") if len(call.audio) < 2 * 16_000 else "second"

    async with bench(script, interim_interval_s=None, sleep=lambda _: lost_first.wait()) as b:
        b.engine.backlog_s = 9.0  # no speculation
        await b.say(speech(1.0, 0.8, 3.0, 0.8))
        await b.engine.until(n_calls=2)  # the second payload is decoded while the first one waits for another attempt
        await until_idle()
        lost_first.set()
        await b.rest()
    warned = next(entry for entry in b.got if isinstance(entry.event, Warned))
    final = next(entry for entry in b.got if isinstance(entry.event, Final))
    assert warned.sequence < final.sequence
    assert warned.cursors.final_s <= final.event.segment.start_s < final.cursors.final_s  # type: ignore[union-attr]


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
            for _ in range(100):  # so that the audio is taken: without FINALIZE nothing else tells of it
                await asyncio.sleep(0)
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


@pytest.mark.parametrize(("confidence", "n_utterances"), [(0.9, 2), (0.5, 1)])
async def test_a_short_pause_ends_an_utterance_of_high_confidence(confidence, n_utterances):
    segmentation = EndpointOptions()
    pause_s = (segmentation.end_silence_s + segmentation.low_confidence_silence_s) / 2
    async with bench(lambda call: "words") as b:
        b.engine.confidence = confidence
        await b.say(speech(1.0, pause_s, 1.0, segmentation.low_confidence_silence_s + 0.1))
        await b.rest()
    assert len(b.finals()) == n_utterances


@pytest.mark.parametrize("answer", ["words", Overloaded("full"), EngineFailed("no")], ids=["decoded", "full", "failed"])
async def test_audio_behind_a_pause_waits_for_the_text_and_not_for_a_failing_engine(answer):
    answers = [answer]
    async with bench(lambda call: answers.pop() if answers else "words") as b:
        b.engine.gate.clear()
        await b.say(speech(1.0, EndpointOptions().end_silence_s + 0.1, 1.0, 1.0))
        await b.engine.until(n_calls=1)
        await until_idle()
        assert b.stream.cursors.received_s == pytest.approx(1.0 + EndpointOptions().end_silence_s, abs=0.15)
        b.engine.gate.set()
        await b.rest()
    assert b.finals() == ["words", "words"]


async def test_two_utterances_that_fail_in_one_moment_end_the_stream_with_the_reason():
    async with bench(lambda call: RuntimeError("broken")) as b:
        b.engine.gate.clear()
        await b.say(tone(1.0))
        await b.stream.put(Control.FINALIZE)
        await b.engine.until(n_calls=1)
        await b.say(speech(1.0, 1.0))
        await b.engine.until(n_calls=2)
        await until_idle()
        b.engine.gate.set()
        with pytest.raises(RuntimeError, match="broken"):
            async with asyncio.timeout(5):
                await b.rest()
        assert b.stream.journal.is_closed


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


async def test_the_language_of_an_utterance_is_expected_of_the_next_once_it_is_clear():
    async with bench(lambda call: "words", options=DecodeOptions()) as b:
        await b.say(speech(1.0, 0.8, 3.0, 0.8, 1.0, 0.8))
        await b.rest()
    finals = [call for call in b.engine.calls if call.ticket.lane is Lane.LIVE_FINAL]
    by_length = {round(len(call.audio) / 16_000): call.options.expected_language for call in finals}
    assert finals[0].options.expected_language == ""
    assert finals[-1].options.expected_language == "en"
    assert len(by_length) > 1


async def test_an_update_changes_the_options_from_the_next_utterance_on():
    async with bench(lambda call: call.options.language or "") as b:
        await b.say(speech(1.0, 0.8, 0.5))
        await b.stream.put(Update(DecodeOptions(language="fr"), EndpointOptions(end_silence_s=1.0)))
        await b.say(speech(0.5, 0.8, 1.0))
        await b.rest()
    assert b.finals() == ["en", "en", "fr"]


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


async def test_interims_expect_the_language_that_was_clear_before():
    async with bench(lambda call: "words", options=DecodeOptions(), interim_interval_s=0.5) as b:
        await b.say(speech(3.0, 0.8))
        await b.until(Final)
        await b.say(tone(2.0))
        await b.until(Interim, lambda interim: interim.start_s > 3.0)
    assert b.calls_in(Lane.LIVE_INTERIM)[-1].options.expected_language == "en"


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
        while b.stream.cursors.received_s < min(end, len(data)) // 2 / 16_000:  # by other threads  # noqa: ASYNC110
            await asyncio.sleep(0)
        await until_idle()


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


async def test_interims_of_a_released_utterance_are_not_decoded():
    async with bench(promising, interim_interval_s=0.4) as b:
        b.engine.gate.clear()
        b.engine.stuck = frozenset({Lane.LIVE_INTERIM})
        await b.say(tone(1.0))
        await b.engine.until(n_calls=1)  # an interim, which will never be decoded
        await b.stream.put(Control.FINALIZE)
        await b.say(silence(0.2) + tone(0.6) + silence(2.0))
        await b.engine.until(n_calls=3)  # the finals of both utterances
        b.engine.gate.set()
        await b.until(Final)
        await b.until(Final)
        await b.rest()
    assert isinstance(b.got[-1].event, Completed)


async def test_the_memory_of_a_long_stream_is_bounded():
    audio = StreamAudio(Admission(AdmissionOptions()))
    async with bench(lambda call: "x", audio=audio) as b:
        for _ in range(60):
            await b.say(speech(5.0, 1.0), 32_000)
            await b.until(Final)
            assert audio.n_bytes < 20 * 2 * BYTES_PER_S


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
