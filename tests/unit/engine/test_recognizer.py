from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.bench import CUTS, ENGLISH, audio, serving, unclear_below, utterances
from tests.unit.engine.harness import ManualExecutor
from tests.unit.idle import until_idle
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.decoding.chunk_decoder import SILENCE_S
from typeless_grpc.engine.decoding.requests import task_of
from typeless_grpc.engine.interface import (
    DecodeOptions,
    Lane,
    Task,
    Ticket,
    VoiceActivityOptions,
)
from typeless_grpc.engine.recognizer import queue_s
from typeless_grpc.engine.scheduler import Timing
from typeless_grpc.engine.scripted_model import hypothesis_of
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, NotFound, Overloaded
from typeless_grpc.speech.transcript import SuppressionReason

# ---- from audio to a transcript ---------------------------------------------------------------------------------


async def test_a_recording_becomes_a_transcript_with_its_own_times():
    async with serving() as bench:
        bench.model.script = lambda decode: f"{decode.audio_s:.1f} s"
        recognition = await bench.transcribe(audio(2.0, 4.0, 2.0, 6.0, 2.0))
    transcript = recognition.transcript
    assert [segment.text for segment in transcript.segments] == ["4.4 s", "6.4 s"]
    assert [round(segment.start_s, 1) for segment in transcript.segments] == [2.0, 8.0]
    assert [round(segment.end_s, 1) for segment in transcript.segments] == [6.0, 14.0]
    assert transcript.audio_s == 16.0
    assert transcript.speech_s == pytest.approx(10.0, abs=0.1)
    assert (transcript.language, transcript.language_probability, transcript.model) == ("en", 1.0, "scripted")
    assert recognition.n_chunks == 2


async def test_only_speech_and_a_little_silence_is_encoded():
    async with serving() as bench:
        await bench.transcribe(audio(2.0, 4.0, 2.0, 15.0))
    short, long = sorted(bench.model.decodes, key=lambda decode: decode.audio_s)
    assert (short.audio_s, long.audio_s) == pytest.approx((4.4, 15.2), abs=0.1)
    assert (short.silence_s, long.silence_s) == pytest.approx((SILENCE_S - 0.2, SILENCE_S), abs=0.05)  # 0.2 s is there


async def test_silence_gives_an_empty_transcript_without_work():
    async with serving() as bench:
        recognition = await bench.transcribe(np.zeros(5 * SAMPLE_RATE_HZ, np.float32), DecodeOptions())
    assert recognition.transcript.segments == ()
    assert (recognition.transcript.language, recognition.transcript.speech_s) == ("", 0.0)
    assert (recognition.n_chunks, recognition.queue_s) == (0, 0.0)
    assert bench.model.batches == []


async def test_a_hallucination_is_reported_with_its_reason():
    async with serving() as bench:
        made_up = hypothesis_of("Thanks for watching!", no_speech_probability=0.9, avg_logprob=-2.0)
        bench.model.script = lambda decode: made_up
        recognition = await bench.transcribe(utterances(1))
    assert recognition.transcript.segments == ()
    (suppressed,) = recognition.transcript.suppressed
    assert (suppressed.segment.text, suppressed.reason) == ("Thanks for watching!", SuppressionReason.NO_SPEECH)


@pytest.mark.parametrize(
    ("requested", "n_chunks"),
    [
        pytest.param(VoiceActivityOptions(), 1, id="the engine's choice"),
        pytest.param(VoiceActivityOptions(end_silence_s=0.4), 2, id="a shorter pause ends an utterance"),
        pytest.param(VoiceActivityOptions(max_utterance_s=3.0), 4, id="no longer utterances"),
        pytest.param(VoiceActivityOptions(speech_padding_s=30.0), 1, id="more padding than there is room"),
    ],
)
async def test_the_callers_voice_activity_options_decide_where_utterances_end(
    requested: VoiceActivityOptions, n_chunks: int
):
    async with serving() as bench:
        recognition = await bench.transcribe(audio(1.0, 4.0, 0.6, 4.0, 1.0), replace(ENGLISH, voice_activity=requested))
    assert recognition.n_chunks == n_chunks
    assert max(decode.audio_s for decode in bench.model.decodes) <= (requested.max_utterance_s or CUTS.longest_s)


async def test_the_callers_threshold_decides_what_is_speech():
    faint = audio(1.0, 4.0, 1.0) * 0.3
    async with serving() as bench:
        assert (await bench.transcribe(faint, replace(ENGLISH, voice_activity=VoiceActivityOptions(0.2)))).n_chunks == 1
        assert (await bench.transcribe(faint, replace(ENGLISH, voice_activity=VoiceActivityOptions(0.8)))).n_chunks == 0


async def test_an_utterance_is_decoded_uncut():
    utterance = audio(1.0, 2.0, 3.0)  # with a pause that would be no part of a recording's chunk
    async with serving() as bench:
        recognition = await bench.recognize(utterance, Lane.LIVE_FINAL)
    assert recognition.n_chunks == 1
    (segment,) = recognition.transcript.segments
    assert (segment.start_s, segment.end_s) == pytest.approx((1.0, 3.0), abs=0.05)
    (decode,) = bench.model.decodes
    assert np.array_equal(decode.audio, utterance)


async def test_an_interim_is_decoded_once_whatever_its_text():
    async with serving() as bench:
        bench.model.script = unclear_below(99.0)
        recognition = await bench.recognize(audio(1.0, 2.0), Lane.LIVE_INTERIM)
    assert recognition.transcript.text == "short silence"
    assert len(bench.model.decodes) == 1
    assert bench.detector.n_calls == 0


async def test_an_utterance_longer_than_30_s_is_refused():
    async with serving() as bench:
        await bench.recognize(np.zeros(30 * SAMPLE_RATE_HZ, np.float32), Lane.LIVE_FINAL)
        with pytest.raises(InvalidInput, match="30 s"):
            await bench.recognize(np.zeros(30 * SAMPLE_RATE_HZ + 1, np.float32), Lane.LIVE_FINAL)


# ---- options ----------------------------------------------------------------------------------------------------


async def test_every_call_keeps_its_options_inside_a_mixed_batch():
    wanted = [
        DecodeOptions(language="en", prompt="Dr Zelvari"),
        DecodeOptions(language="de", task=Task.TRANSLATE),
        DecodeOptions(language="zh", word_timestamps=True),
        DecodeOptions(language="en", hotwords=("Korventa",), beam_size=2),
        DecodeOptions(),
    ]
    async with serving(beam_size=2) as bench:
        bench.model.script = lambda decode: repr(decode.task)
        calls = [bench.start(utterances(1), options) for options in wanted]
        await bench.threads.run_all()
        texts = [(await call).transcript.text for call in calls]
    assert max(len(batch) for batch in bench.model.batches) > 1
    assert texts == [repr(task_of(options, options.language or "de")) for options in wanted]
    assert {decode.beam_size for decode in bench.model.decodes} == {2}


@pytest.mark.parametrize(("requested", "beam_size"), [(None, 3), (1, 1), (5, 5)])
async def test_the_beam_size_is_the_callers_or_the_servers(requested: int | None, beam_size: int):
    async with serving(beam_size=3) as bench:
        await bench.transcribe(utterances(1), replace(ENGLISH, beam_size=requested))
    assert [decode.beam_size for decode in bench.model.decodes] == [beam_size]


# ---- bounds, errors, cancelling ---------------------------------------------------------------------------------


async def test_a_long_recording_does_not_fill_the_queue(monkeypatch: pytest.MonkeyPatch):
    async with serving(max_parallel_chunks=3, max_batch=2) as bench:
        submit, n_submitted, most = bench.scheduler.submit, 0, 0

        async def counting(*work: Any, **how: Any) -> Any:
            nonlocal n_submitted, most
            n_submitted += 1
            most = max(most, n_submitted)
            try:
                return await submit(*work, **how)
            finally:
                n_submitted -= 1

        monkeypatch.setattr(bench.scheduler, "submit", counting)
        recognition = await bench.transcribe(utterances(12))
    assert recognition.n_chunks == 12
    assert most == 3


async def test_a_recording_in_progress_is_not_refused_by_a_queue_that_fills_up(monkeypatch: pytest.MonkeyPatch):
    begun: list[bool] = []
    async with serving(max_batch=2, max_parallel_chunks=2) as bench:
        submit = bench.scheduler.submit

        async def noting(work: Any, *, is_continuation: bool = False, **how: Any) -> Any:
            begun.append(is_continuation)
            return await submit(work, is_continuation=is_continuation, **how)

        monkeypatch.setattr(bench.scheduler, "submit", noting)
        await bench.transcribe(utterances(6))
    assert begun == [False, False, True, True, True, True]


async def test_an_error_in_one_window_fails_the_call_and_cancels_its_other_work():
    async with serving(max_batch=1) as bench:
        failed = EngineFailed("out of memory")
        bench.model.script = lambda decode: failed if len(bench.model.decodes) == 2 else "fine"
        call = bench.start(utterances(5))
        await bench.threads.run_all()
        with pytest.raises(EngineFailed) as caught:
            await call
        assert caught.value is failed
        assert len(bench.model.decodes) <= 3  # one may have begun
        assert bench.scheduler.backlog_s(Lane.JOBS) == 0.0
        assert bench.pool.n_users == 0
        assert (await bench.transcribe(utterances(1))).transcript.text == "fine"


async def test_a_cancelled_call_leaves_nothing_behind():
    async with serving(max_batch=1) as bench:
        call = bench.start(utterances(5))
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # the voice activity
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # the first window
        await bench.threads.until(n_waiting=1)
        call.cancel()
        await bench.threads.run_all()
        assert call.cancelled()
        assert len(bench.model.decodes) == 1  # not even the window that was next
        assert bench.scheduler.backlog_s(Lane.JOBS) == 0.0
        assert bench.pool.n_users == 0


async def test_a_cancelled_call_stops_its_detector():
    with ThreadPoolExecutor(1) as looking:
        async with serving(vad_threads=looking) as bench:
            bench.detector.gate = threading.Event()
            call = bench.start(utterances(20))  # two minutes: several looks
            assert await asyncio.to_thread(bench.detector.was_called.wait, 10)
            call.cancel()
            await until_idle()
            bench.detector.gate.set()
            await asyncio.get_running_loop().run_in_executor(looking, lambda: None)  # after the look
            assert call.cancelled()
            assert bench.detector.n_calls == 1
            assert bench.model.batches == []


async def test_the_detector_alternates_between_recordings():
    async with serving() as bench:
        long, short = bench.start(utterances(20)), bench.start(utterances(1))
        await bench.threads.until(n_waiting=2)
        bench.threads.run()
        await until_idle()
        bench.threads.run()
        assert bench.detector.n_calls == 2
        await bench.threads.run_all()
        assert (await short).transcript.segments
        assert (await long).transcript.segments


async def test_an_utterance_does_not_wait_for_the_detector_of_recordings():
    looking = ManualExecutor()
    async with serving(vad_threads=looking) as bench:
        recording = bench.start(utterances(20))
        await looking.until(n_waiting=1)
        spoken = asyncio.create_task(bench.engine.recognize(audio(3.0), ENGLISH, Ticket(Lane.LIVE_FINAL)))
        await bench.threads.run_all()
        assert (await spoken).transcript.segments
        recording.cancel()


async def test_a_call_past_its_deadline_is_refused_before_the_detector_runs():
    async with serving() as bench:
        bench.clock.advance(100.0)
        with pytest.raises(DeadlineExceeded):
            await bench.start(utterances(1), ticket=Ticket(deadline_s=99.0))
        assert bench.detector.n_calls == 0


async def test_a_recording_too_long_for_its_deadline_is_refused_once_its_windows_are_known():
    async with serving() as bench:
        bench.model.on_decode = lambda: bench.clock.advance(5.0)
        await bench.transcribe(utterances(1))
        n_before = len(bench.model.decodes)
        call = bench.start(utterances(10), ticket=Ticket(deadline_s=bench.clock.now_s() + 20.0))
        await bench.threads.run_all()
        with pytest.raises(DeadlineExceeded):
            await call
        assert len(bench.model.decodes) == n_before


async def test_a_call_fails_with_the_reason_that_the_server_shuts_down():
    async with serving() as bench:
        call = bench.start(utterances(3))
        await bench.threads.until(n_waiting=1)
        bench.threads.run()
        await bench.threads.until(n_waiting=1)
        await bench.scheduler.stop()
        with pytest.raises(Overloaded) as caught:
            await call
        assert caught.value.reason == "DRAINING"


# ---- queue time -------------------------------------------------------------------------------------------------


async def test_the_queue_time_excludes_the_time_of_work():
    async with serving() as bench:
        bench.model.on_decode = lambda: bench.clock.advance(3.0)
        other = bench.start(utterances(1), replace(ENGLISH, beam_size=5))
        await until_idle()
        bench.threads.run()
        await bench.threads.until(n_waiting=1)  # another's window runs
        mine = bench.start(utterances(1))
        await until_idle()
        bench.threads.run(1)  # my voice activity
        await until_idle()
        await bench.threads.run_all()
        assert (await other).queue_s == 0.0
        assert (await mine).queue_s == 3.0


@pytest.mark.parametrize(
    ("turns", "waited"),
    [
        pytest.param([], 0.0, id="nothing done"),
        pytest.param([Timing(0, 0, 5)], 0.0, id="at once"),
        pytest.param([Timing(1, 3, 5)], 2.0, id="before it began"),
        pytest.param([Timing(0, 1, 3), Timing(0, 3, 5)], 1.0, id="one after the other"),
        pytest.param([Timing(0, 1, 3), Timing(3, 6, 8)], 4.0, id="between two"),
        pytest.param([Timing(0, 1, 9), Timing(0, 2, 4), Timing(0, 9, 10)], 1.0, id="side by side"),
        pytest.param([Timing(5, 9, 10), Timing(0, 1, 3)], 7.0, id="in any order"),
    ],
)
def test_the_queue_time_is_that_in_which_no_window_ran(turns: list[Timing], waited: float):
    assert queue_s(turns) == waited


# ---- unsupported options ----------------------------------------------------------------------------------------


async def test_an_unsupported_language_is_refused_before_any_work():
    async with serving() as bench:
        with pytest.raises(InvalidInput) as caught:
            await bench.transcribe(utterances(1), DecodeOptions(language="fr"))
        assert caught.value.reason == "LANGUAGE_NOT_SUPPORTED"
        assert caught.value.violations[0].field == "options.language"
        assert bench.detector.n_calls == 0
        assert bench.pool.n_users == 0


async def test_an_unsupported_task_is_refused_before_any_work():
    async with serving() as bench:
        bench.model.is_multilingual = False
        with pytest.raises(InvalidInput) as caught:
            await bench.transcribe(utterances(1), DecodeOptions(task=Task.TRANSLATE))
        assert caught.value.violations[0].field == "options.task"
        assert bench.detector.n_calls == 0


async def test_an_unknown_model_is_not_found():
    async with serving() as bench:
        with pytest.raises(NotFound):
            await bench.transcribe(utterances(1), DecodeOptions(model="large"))
