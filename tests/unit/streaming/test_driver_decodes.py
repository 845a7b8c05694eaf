"""What a stream decodes, and when: speculative decodes, interims and finals; also if the engine is busy or fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.speech import samples_as_text, silence, speech, tone
from tests.unit.idle import until_idle
from tests.unit.streaming.driver_bench import HESITATION_S, bench
from typeless_grpc.engine.interface import DecodeOptions, Lane, VoiceActivityOptions
from typeless_grpc.engine.scripted import EngineCall
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded
from typeless_grpc.streaming import interims
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Final, Interim, SpeechEnd, Warned
from typeless_grpc.streaming.requests import Control


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


def disagreeing(call: EngineCall) -> str:
    """Interims that agree on what the final then says otherwise."""
    return "Good morning to you all" if call.ticket.lane is Lane.LIVE_INTERIM else "Good mourning to everybody"


async def test_a_final_waits_for_the_interims_of_its_utterance_and_keeps_what_they_committed():
    async with bench(disagreeing, interim_interval_s=0.5) as b:
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
    async with bench(disagreeing, interim_interval_s=0.5) as b:
        b.engine.stuck = frozenset({Lane.LIVE_INTERIM})
        await b.say(speech(1.0, 1.2))
        await b.until(Final)
        await b.engine.until(n_cancelled=1)
    assert b.finals() == ["Good mourning to everybody"]


async def test_a_final_does_not_wait_for_interims_on_a_busy_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interims, "FINAL_WAITS_S", 3600.0)
    async with bench(disagreeing, interim_interval_s=0.5) as b:
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
            async with asyncio.timeout(30):
                await b.rest()
        assert b.stream.journal.is_closed


async def test_the_language_of_an_utterance_is_expected_of_the_next_once_it_is_clear():
    async with bench(lambda call: "words", options=DecodeOptions()) as b:
        await b.say(speech(1.0, 0.8, 3.0, 0.8, 1.0, 0.8))
        await b.rest()
    finals = [call for call in b.engine.calls if call.ticket.lane is Lane.LIVE_FINAL]
    by_length = {round(len(call.audio) / 16_000): call.options.expected_language for call in finals}
    assert finals[0].options.expected_language == ""
    assert finals[-1].options.expected_language == "en"
    assert len(by_length) > 1


async def test_interims_expect_the_language_that_was_clear_before():
    async with bench(lambda call: "words", options=DecodeOptions(), interim_interval_s=0.5) as b:
        await b.say(speech(3.0, 0.8))
        await b.until(Final)
        await b.say(tone(2.0))
        await b.until(Interim, lambda interim: interim.start_s > 3.0)
    assert b.calls_in(Lane.LIVE_INTERIM)[-1].options.expected_language == "en"


async def test_interims_of_a_released_utterance_are_not_decoded():
    async with bench(disagreeing, interim_interval_s=0.4) as b:
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
