from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.harness import ManualExecutor, settle
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import FRAME_SAMPLES, DetectorState, Probabilities
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.decoding.chunks import (
    SECOND_PASS_BEAM_SIZE,
    SECOND_PASS_SILENCE_S,
    SILENCE_S,
    RecognizerOptions,
    WindowScheduler,
    run_batch,
)
from typeless_grpc.engine.decoding.inference import task_of
from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Lane, Recognition, Task, Ticket, VoiceActivityOptions
from typeless_grpc.engine.model import TEMPERATURES, Hypothesis, Model
from typeless_grpc.engine.planning.cuts import CutPolicy
from typeless_grpc.engine.recognizer import Recognizer, waited_s
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions, Turn
from typeless_grpc.engine.scripted_model import Decoding, Script, ScriptedModel, evenly, written
from typeless_grpc.engine.transcript import SuppressionReason
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, NotFound, Overloaded

# A pause of more than a second ends a piece, so that a test says where pieces are.
CUTS = CutPolicy(padding_s=0.2, context_s=0.2, silence_s=1.0, longest_s=24.0)
ENGLISH = DecodeOptions(language="en")


def audio(*parts_s: float) -> Audio:
    """Silence and speech in turn, beginning with silence; the fake detector hears whatever is not 0."""
    parts = [np.full(round(part_s * SAMPLE_RATE_HZ), index % 2, np.float32) for index, part_s in enumerate(parts_s)]
    return np.concatenate(parts)


def utterances(count: int) -> Audio:
    """As many utterances as pieces: of 4 s each, a pause of 2 s between them."""
    return audio(*[2.0, 4.0] * count)


class FakeSpeech:
    """Hears speech in every frame that is not silent. gate: what to wait for in each call; n_asked: calls so far."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.asked = threading.Event()
        self.gate: threading.Event | None = None

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        self.n_asked += 1
        self.asked.set()
        if self.gate:
            assert self.gate.wait(10)
        waiting = np.concatenate([state.pending, audio])
        n_whole = len(waiting) - len(waiting) % FRAME_SAMPLES
        state.pending = waiting[n_whole:]
        return np.abs(waiting[:n_whole].reshape(-1, FRAME_SAMPLES)).max(axis=1)

    def finish(self, state: DetectorState) -> Probabilities:
        return np.abs(state.pending).max(keepdims=True) if len(state.pending) else np.zeros(0, np.float32)


class FakePool:
    """Has one model, and knows who uses it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.n_users = 0

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Model]:
        if name != self._model.name:
            raise NotFound(f"No model called '{name}'.", reason="MODEL_NOT_FOUND")
        self.n_users += 1
        try:
            yield self._model
        finally:
            self.n_users -= 1


@dataclass
class Bench:
    engine: Recognizer
    scheduler: WindowScheduler
    model: ScriptedModel
    pool: FakePool
    speech: FakeSpeech
    threads: ManualExecutor
    clock: FakeClock

    def transcribe(
        self, audio: Audio, options: DecodeOptions = ENGLISH, ticket: Ticket | None = None
    ) -> asyncio.Task[Recognition]:
        return asyncio.create_task(self.engine.transcribe(audio, options, ticket or Ticket()))

    async def heard(self, audio: Audio, options: DecodeOptions = ENGLISH) -> Recognition:
        call = self.transcribe(audio, options)
        await self.threads.run_all()
        return await call


@asynccontextmanager
async def serving(*, max_batch: int = 8, looking: Executor | None = None, **options: Any) -> AsyncIterator[Bench]:
    model, speech, threads, clock = ScriptedModel(), FakeSpeech(), ManualExecutor(), FakeClock()
    pool = FakePool(model)
    scheduler: WindowScheduler = Scheduler(run_batch, SchedulerOptions(max_batch, gather_ms=0.0), clock, threads)
    chosen = RecognizerOptions("scripted", **{"cuts": CUTS} | options)
    engine = Recognizer(pool, speech, scheduler, chosen, looking or threads, threads)  # type: ignore[arg-type]
    await scheduler.start()
    try:
        yield Bench(engine, scheduler, model, pool, speech, threads, clock)
    finally:
        await scheduler.stop()


# ---- from audio to a transcript ---------------------------------------------------------------------------------


async def test_a_recording_becomes_a_transcript_on_its_own_clock():
    async with serving() as bench:
        bench.model.script = lambda decoding: f"{decoding.audio_s:.1f} s"
        recognition = await bench.heard(audio(2.0, 4.0, 2.0, 6.0, 2.0))
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
        await bench.heard(audio(2.0, 4.0, 2.0, 15.0))
    short, long = sorted(bench.model.decodings, key=lambda decoding: decoding.audio_s)
    assert (short.audio_s, long.audio_s) == pytest.approx((4.4, 15.2), abs=0.1)
    assert (short.silence_s, long.silence_s) == pytest.approx((SILENCE_S - 0.2, SILENCE_S), abs=0.05)  # 0.2 s is there


async def test_nothing_said_is_an_empty_transcript_and_no_work():
    async with serving() as bench:
        recognition = await bench.heard(np.zeros(5 * SAMPLE_RATE_HZ, np.float32), DecodeOptions())
    assert recognition.transcript.segments == ()
    assert (recognition.transcript.language, recognition.transcript.speech_s) == ("", 0.0)
    assert (recognition.n_chunks, recognition.queue_s) == (0, 0.0)
    assert bench.model.batches == []


async def test_what_the_model_made_up_is_reported_with_its_reason():
    async with serving() as bench:
        made_up = written("Thanks for watching!", no_speech_probability=0.9, avg_logprob=-2.0)
        bench.model.script = lambda decoding: made_up
        recognition = await bench.heard(utterances(1))
    assert recognition.transcript.segments == ()
    (suppressed,) = recognition.transcript.suppressed
    assert (suppressed.segment.text, suppressed.reason) == ("Thanks for watching!", SuppressionReason.NO_SPEECH)


@pytest.mark.parametrize(
    ("asked", "n_pieces"),
    [
        pytest.param(VoiceActivityOptions(), 1, id="the engine's choice"),
        pytest.param(VoiceActivityOptions(end_silence_s=0.4), 2, id="a shorter pause ends an utterance"),
        pytest.param(VoiceActivityOptions(max_utterance_s=3.0), 4, id="no longer utterances"),
        pytest.param(VoiceActivityOptions(speech_padding_s=30.0), 1, id="more padding than there is room"),
    ],
)
async def test_the_caller_says_where_utterances_end(asked: VoiceActivityOptions, n_pieces: int):
    async with serving() as bench:
        recognition = await bench.heard(audio(1.0, 4.0, 0.6, 4.0, 1.0), replace(ENGLISH, voice_activity=asked))
    assert recognition.n_chunks == n_pieces
    assert max(decoding.audio_s for decoding in bench.model.decodings) <= (asked.max_utterance_s or CUTS.longest_s)


async def test_the_caller_says_how_sure_to_be_of_speech():
    faint = audio(1.0, 4.0, 1.0) * 0.3
    async with serving() as bench:
        assert (await bench.heard(faint, replace(ENGLISH, voice_activity=VoiceActivityOptions(0.2)))).n_chunks == 1
        assert (await bench.heard(faint, replace(ENGLISH, voice_activity=VoiceActivityOptions(0.8)))).n_chunks == 0


async def test_an_utterance_is_decoded_as_it_is():
    utterance = audio(1.0, 2.0, 3.0)  # with a pause that would be no part of a recording's piece
    async with serving() as bench:
        recognition = await recognized(bench, utterance, Lane.LIVE_FINAL)
    assert recognition.n_chunks == 1
    (segment,) = recognition.transcript.segments
    assert (segment.start_s, segment.end_s) == pytest.approx((1.0, 3.0), abs=0.05)
    (decoding,) = bench.model.decodings
    assert np.array_equal(decoding.audio, utterance)


async def test_an_interim_is_decoded_once_whatever_its_text():
    async with serving() as bench:
        bench.model.script = unclear_below(99.0)
        recognition = await recognized(bench, audio(1.0, 2.0), Lane.LIVE_INTERIM)
    assert recognition.transcript.text == "short silence"
    assert len(bench.model.decodings) == 1
    assert bench.speech.n_asked == 0


async def test_an_utterance_is_no_longer_than_the_encoder_takes():
    async with serving() as bench:
        await recognized(bench, np.zeros(30 * SAMPLE_RATE_HZ, np.float32), Lane.LIVE_FINAL)
        with pytest.raises(InvalidInput, match="30 s"):
            await recognized(bench, np.zeros(30 * SAMPLE_RATE_HZ + 1, np.float32), Lane.LIVE_FINAL)


async def recognized(bench: Bench, utterance: Audio, lane: Lane) -> Recognition:
    call = asyncio.create_task(bench.engine.recognize(utterance, ENGLISH, Ticket(lane)))
    await bench.threads.run_all()
    return await call


# ---- the second pass --------------------------------------------------------------------------------------------

FAINT = -0.9  # a mean log probability of a low confidence


def unclear_below(silence_s: float) -> Script:
    """A model that is unsure of its text unless so much silence is added."""

    def script(decoding: Decoding) -> Hypothesis:
        text = "long silence" if decoding.silence_s > 2.0 else "short silence"
        return written(text, avg_logprob=FAINT if decoding.silence_s < silence_s else -0.2)

    return script


@pytest.mark.parametrize(
    ("clear_from_s", "expected"),
    [
        pytest.param(0.0, [SILENCE_S], id="confident at once"),
        pytest.param(2.0, [SILENCE_S, SECOND_PASS_SILENCE_S], id="confident in the second pass"),
        pytest.param(99.0, [SILENCE_S, SECOND_PASS_SILENCE_S], id="never confident"),
    ],
)
async def test_a_text_of_low_confidence_is_decoded_once_more_and_not_again(clear_from_s: float, expected: list[float]):
    async with serving() as bench:
        bench.model.script = unclear_below(clear_from_s)
        recognition = await bench.heard(utterances(1))
    assert [decoding.silence_s for decoding in bench.model.decodings] == pytest.approx(expected, abs=0.05)
    assert recognition.n_chunks == 1


async def test_a_long_piece_has_no_second_pass_for_a_low_confidence_alone():
    async with serving() as bench:
        bench.model.script = unclear_below(99.0)
        await bench.heard(audio(1.0, 16.0, 1.0))
        assert len(bench.model.decodings) == 1
        bench.model.script = lambda decoding: Hypothesis("1.1.1.1", is_cut_off=True)
        await bench.heard(audio(1.0, 16.0, 1.0))
        assert any(decoding.silence_s > 2.0 for decoding in bench.model.decodings)


@pytest.mark.parametrize(
    ("text", "n_searches", "expected"),
    [
        pytest.param("a dense script", 2, "a dense script", id="many tokens"),
        pytest.param("no no no no no no", 1, "no", id="a loop"),
    ],
)
async def test_only_a_text_that_is_no_loop_is_searched_for_with_more_tokens(text: str, n_searches: int, expected: str):
    async with serving() as bench:
        bench.model.script = lambda decoding: Hypothesis(text, is_cut_off=decoding.max_tokens < 60)
        bench.model.aligns = lambda text, audio_s: [
            TimedWord(f" {word}", min(index, 1) * audio_s, audio_s, 0.9) for index, word in enumerate(text.split())
        ]
        recognition = await bench.heard(utterances(1))
    limits = [decoding.max_tokens for decoding in bench.model.decodings]
    assert len(limits) == n_searches
    assert limits == sorted(set(limits))
    assert recognition.transcript.text == expected


FIRST, SECOND = "the first text", "the second text"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(written(FIRST, avg_logprob=-0.9), written(SECOND, avg_logprob=-0.4), SECOND, id="likelier"),
        pytest.param(written(FIRST, avg_logprob=-0.9), written(SECOND, avg_logprob=-1.4), FIRST, id="less likely"),
        pytest.param(written(""), written(SECOND, avg_logprob=-1.4), SECOND, id="the first is empty"),
        pytest.param(written(FIRST, avg_logprob=-0.9), written(""), FIRST, id="the second is empty"),
        pytest.param(written("fast " * 60), written(SECOND, avg_logprob=-0.9), SECOND, id="faster than speech"),
    ],
)
async def test_the_better_text_of_the_two_is_kept(first: Hypothesis, second: Hypothesis, expected: str):
    async with serving() as bench:
        texts = iter([first, second])
        bench.model.script = lambda decoding: next(texts)
        recognition = await bench.heard(utterances(1))
    assert recognition.transcript.text == expected


async def test_text_that_cannot_be_used_twice_is_kept_out_with_its_reason():
    async with serving() as bench:
        bench.model.script = lambda decoding: Hypothesis("1.1.1.1", is_cut_off=True)
        recognition = await bench.heard(utterances(1))
    assert [decoding.silence_s > 2.0 for decoding in bench.model.decodings] == [False, False, True]
    assert recognition.transcript.segments == ()
    assert [one.reason for one in recognition.transcript.suppressed] == [SuppressionReason.LOW_CONFIDENCE]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [(None, [1, SECOND_PASS_BEAM_SIZE]), (1, [1, SECOND_PASS_BEAM_SIZE]), (8, [8, 8])],
    ids=["unset", "1", "8"],
)
async def test_the_second_pass_has_at_least_five_beams(requested: int | None, expected: list[int]):
    async with serving() as bench:
        bench.model.script = unclear_below(99.0)
        await bench.heard(utterances(1), replace(ENGLISH, beam_size=requested))
    assert [decoding.beam_size for decoding in bench.model.decodings] == expected


async def test_only_the_piece_in_doubt_is_decoded_once_more():
    async with serving() as bench:
        bench.model.script = lambda decoding: unclear_below(2.0)(decoding) if decoding.audio_s > 5.0 else "short"
        recognition = await bench.heard(audio(2.0, 4.0, 2.0, 6.0))
    assert len(bench.model.decodings) == 3
    assert recognition.transcript.text == "short long silence"


async def test_the_second_pass_does_not_delay_others_of_its_batch():
    async with serving() as bench:
        bench.model.script = lambda decoding: unclear_below(2.0)(decoding) if decoding.audio_s > 5.0 else "short"
        slow, quick = bench.transcribe(audio(2.0, 6.0)), bench.transcribe(utterances(1))
        await settle()
        bench.threads.run()
        bench.threads.run()  # both voice activities
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # one batch of both
        await settle()
        assert [len(batch) for batch in bench.model.batches] == [2]
        assert quick.done()
        assert not slow.done()
        await bench.threads.run_all()
        await slow


async def test_a_loop_is_removed_and_reported_and_what_was_said_twice_is_kept():
    async with serving() as bench:
        bench.model.script = lambda decoding: "no no no no no no no no"

        def four_have_time(text: str, audio_s: float) -> list[TimedWord]:
            starts_s = [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]
            ends_s = [0.9, 1.9, 2.9, 4.0, 4.0, 4.0, 4.0, 4.0]
            return [TimedWord(" no", start_s, end_s, 0.9) for start_s, end_s in zip(starts_s, ends_s, strict=True)]

        bench.model.aligns = four_have_time
        looping = await bench.heard(utterances(1))
        bench.model.aligns = evenly
        repeating = await bench.heard(utterances(1))
    assert looping.transcript.text == "no no no no"
    assert [one.segment.text for one in looping.transcript.suppressed] == ["no no no no"]
    assert [one.reason for one in looping.transcript.suppressed] == [SuppressionReason.REPETITION]
    assert repeating.transcript.text == "no no no no no no no no"
    assert len(bench.model.decodings) == 2  # none of the two needed a second pass


async def test_speech_that_a_text_leaves_out_is_decoded_on_its_own():
    async with serving() as bench:
        texts = iter(["the beginning", "and the end of it, with as many words as there is speech"])
        bench.model.script = lambda decoding: next(texts)
        bench.model.aligns = lambda text, audio_s: evenly(text, 3.0)
        recognition = await bench.heard(audio(1.0, 3.0, 0.5, 4.0, 1.0))
    first, rest = bench.model.decodings
    assert (first.audio_s, rest.audio_s) == pytest.approx((7.9, 4.5), abs=0.1)
    before, after = recognition.transcript.segments
    assert (before.text, after.text) == ("the beginning", "and the end of it, with as many words as there is speech")
    assert before.end_s <= after.start_s
    assert recognition.n_chunks == 2


async def test_a_translation_is_as_long_as_it_is():
    async with serving() as bench:
        bench.model.script = lambda decoding: "short, short, short, short"
        bench.model.aligns = lambda text, audio_s: evenly(text, 1.5)
        recognition = await bench.heard(utterances(1), DecodeOptions(language="de", task=Task.TRANSLATE))
    assert recognition.transcript.text == "short, short, short, short"
    assert len(bench.model.decodings) == 1


async def test_full_decodes_once_and_as_faster_whisper_does():
    async with serving(is_full_window=True) as bench:
        await bench.heard(utterances(2))
    assert [decoding.temperatures for decoding in bench.model.decodings] == [TEMPERATURES] * 2


async def test_an_interim_is_decoded_once_even_with_temperatures():
    async with serving() as bench:
        call = bench.engine.recognize(audio(1.0, 2.0), replace(ENGLISH, temperatures=(0.2,)), Ticket(Lane.LIVE_INTERIM))
        task = asyncio.create_task(call)
        await bench.threads.run_all()
        await task
    assert [decoding.temperatures for decoding in bench.model.decodings] == [()]


@pytest.mark.parametrize("temperatures", [(0.0, 0.5), (0.5,)])
async def test_who_sets_temperatures_has_faster_whispers_ladder(temperatures: tuple[float, ...]):
    async with serving() as bench:
        await bench.heard(utterances(1), replace(ENGLISH, temperatures=temperatures))
    assert [decoding.temperatures for decoding in bench.model.decodings] == [temperatures]


# ---- language ---------------------------------------------------------------------------------------------------


async def test_the_language_is_found_on_the_longest_of_the_first_pieces_and_then_kept():
    async with serving() as bench:
        bench.model.script = lambda decoding: f"{decoding.audio_s:.1f}"
        # Only the longest of the first three is clearly in German; the rest is taken to be in it as well.
        bench.model.detects = lambda audio: (
            [("de", 0.8)] if round(len(audio) / SAMPLE_RATE_HZ) == 5 else [("es", 0.5), ("de", 0.4)]
        )
        recognition = await bench.heard(audio(2, 3, 2, 5, 2, 4, 2, 8), DecodeOptions(chunking=Chunking.VAD))
    assert round(bench.model.decodings[0].audio_s, 1) == 5.4
    assert [decoding.task.language for decoding in bench.model.decodings] == ["de"] * 4
    assert len(bench.model.batches) == 2
    assert recognition.transcript.text == "3.4 5.4 4.4 8.2"  # in the order of the recording
    assert (recognition.transcript.language, recognition.transcript.language_probability) == ("de", 0.4)


async def test_a_language_that_is_given_is_not_searched():
    async with serving() as bench:
        recognition = await bench.heard(utterances(3), DecodeOptions(language="zh", chunking=Chunking.VAD))
    assert [decoding.task.language for decoding in bench.model.decodings] == ["zh"] * 3
    assert len(bench.model.batches) == 1
    assert (recognition.transcript.language, recognition.transcript.language_probability) == ("zh", 1.0)


async def test_a_language_the_model_lacks_is_refused_before_any_work():
    async with serving() as bench:
        with pytest.raises(InvalidInput) as caught:
            await bench.heard(utterances(1), DecodeOptions(language="fr"))
        assert caught.value.reason == "LANGUAGE_NOT_SUPPORTED"
        assert caught.value.violations[0].field == "options.language"
        assert bench.speech.n_asked == 0
        assert bench.pool.n_users == 0


async def test_a_task_the_model_cannot_do_is_refused_before_any_work():
    async with serving() as bench:
        bench.model.is_multilingual = False
        with pytest.raises(InvalidInput) as caught:
            await bench.heard(utterances(1), DecodeOptions(task=Task.TRANSLATE))
        assert caught.value.violations[0].field == "options.task"
        assert bench.speech.n_asked == 0


async def test_a_model_that_is_not_here_is_not_found():
    async with serving() as bench:
        with pytest.raises(NotFound):
            await bench.heard(utterances(1), DecodeOptions(model="large"))


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
        bench.model.script = lambda decoding: repr(decoding.task)
        calls = [bench.transcribe(utterances(1), options) for options in wanted]
        await bench.threads.run_all()
        texts = [(await call).transcript.text for call in calls]
    assert max(len(batch) for batch in bench.model.batches) > 1
    assert texts == [repr(task_of(options, options.language or "de")) for options in wanted]
    assert {decoding.beam_size for decoding in bench.model.decodings} == {2}


@pytest.mark.parametrize(("asked", "beam_size"), [(None, 3), (1, 1), (5, 5)])
async def test_the_beam_is_the_callers_or_the_servers(asked: int | None, beam_size: int):
    async with serving(beam_size=3) as bench:
        await bench.heard(utterances(1), replace(ENGLISH, beam_size=asked))
    assert [decoding.beam_size for decoding in bench.model.decodings] == [beam_size]


# ---- bounds, errors, cancelling ---------------------------------------------------------------------------------


async def test_a_long_recording_does_not_fill_the_line():
    async with serving(max_windows_at_once=3, max_batch=2) as bench:
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, bench.scheduler._lanes.n_waiting() + len(bench.model.batches[-1]))

        bench.model.on_decode = look
        recognition = await bench.heard(utterances(12))
    assert recognition.n_chunks == 12
    assert most == 3


async def test_a_long_recording_that_has_begun_is_not_lost_to_a_line_that_fills_up(monkeypatch: pytest.MonkeyPatch):
    begun: list[bool] = []
    async with serving(max_batch=2, max_windows_at_once=2) as bench:
        submit = bench.scheduler.submit

        async def noting(work: Any, *, is_begun: bool = False, **how: Any) -> Any:
            begun.append(is_begun)
            return await submit(work, is_begun=is_begun, **how)

        monkeypatch.setattr(bench.scheduler, "submit", noting)
        await bench.heard(utterances(6))
    assert begun == [False, False, True, True, True, True]


async def test_an_error_in_one_window_ends_the_call_with_that_error_and_the_rest_of_its_work():
    async with serving(max_batch=1) as bench:
        failed = EngineFailed("out of memory")
        bench.model.script = lambda decoding: failed if len(bench.model.decodings) == 2 else "fine"
        call = bench.transcribe(utterances(5))
        await bench.threads.run_all()
        with pytest.raises(EngineFailed) as caught:
            await call
        assert caught.value is failed
        assert len(bench.model.decodings) <= 3  # one may have begun
        assert bench.scheduler.backlog_s(Lane.JOBS) == 0.0
        assert bench.pool.n_users == 0
        assert (await bench.heard(utterances(1))).transcript.text == "fine"


async def test_a_cancelled_call_leaves_nothing_behind():
    async with serving(max_batch=1) as bench:
        call = bench.transcribe(utterances(5))
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # the voice activity
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # the first window
        await bench.threads.until(n_waiting=1)
        call.cancel()
        await bench.threads.run_all()
        assert call.cancelled()
        assert len(bench.model.decodings) == 1  # not even the window that was next
        assert bench.scheduler.backlog_s(Lane.JOBS) == 0.0
        assert bench.pool.n_users == 0


async def test_a_cancelled_call_stops_looking_for_speech():
    with ThreadPoolExecutor(1) as looking:
        async with serving(looking=looking) as bench:
            bench.speech.gate = threading.Event()
            call = bench.transcribe(utterances(20))  # two minutes: several looks
            assert await asyncio.to_thread(bench.speech.asked.wait, 10)
            call.cancel()
            await settle()
            bench.speech.gate.set()
            await asyncio.get_running_loop().run_in_executor(looking, lambda: None)  # after the look
            assert call.cancelled()
            assert bench.speech.n_asked == 1
            assert bench.model.batches == []


async def test_a_recording_is_looked_at_in_turn_with_another():
    async with serving() as bench:
        long, short = bench.transcribe(utterances(20)), bench.transcribe(utterances(1))
        await bench.threads.until(n_waiting=2)
        bench.threads.run()
        await settle()
        bench.threads.run()
        assert bench.speech.n_asked == 2
        await bench.threads.run_all()
        assert (await short).transcript.segments
        assert (await long).transcript.segments


async def test_an_utterance_does_not_wait_for_recordings_that_are_looked_at():
    looking = ManualExecutor()
    async with serving(looking=looking) as bench:
        recording = bench.transcribe(utterances(20))
        await looking.until(n_waiting=1)
        spoken = asyncio.create_task(bench.engine.recognize(audio(3.0), ENGLISH, Ticket(Lane.LIVE_FINAL)))
        await bench.threads.run_all()
        assert (await spoken).transcript.segments
        recording.cancel()


async def test_what_cannot_be_in_time_is_refused_before_speech_is_searched():
    async with serving() as bench:
        bench.clock.advance(100.0)
        with pytest.raises(DeadlineExceeded):
            await bench.transcribe(utterances(1), ticket=Ticket(deadline_s=99.0))
        assert bench.speech.n_asked == 0


async def test_a_recording_too_long_for_its_deadline_is_refused_once_its_windows_are_known():
    async with serving() as bench:
        bench.model.on_decode = lambda: bench.clock.advance(5.0)
        await bench.heard(utterances(1))
        n_before = len(bench.model.decodings)
        call = bench.transcribe(utterances(10), ticket=Ticket(deadline_s=bench.clock.now_s() + 20.0))
        await bench.threads.run_all()
        with pytest.raises(DeadlineExceeded):
            await call
        assert len(bench.model.decodings) == n_before


async def test_a_server_that_goes_away_says_so():
    async with serving() as bench:
        call = bench.transcribe(utterances(3))
        await bench.threads.until(n_waiting=1)
        bench.threads.run()
        await bench.threads.until(n_waiting=1)
        await bench.scheduler.stop()
        with pytest.raises(Overloaded) as caught:
            await call
        assert caught.value.reason == "DRAINING"


# ---- what it tells of time --------------------------------------------------------------------------------------


async def test_the_time_in_the_line_is_told_and_not_the_time_of_work():
    async with serving() as bench:
        bench.model.on_decode = lambda: bench.clock.advance(3.0)
        other = bench.transcribe(utterances(1), replace(ENGLISH, beam_size=5))
        await settle()
        bench.threads.run()
        await bench.threads.until(n_waiting=1)  # another's window runs
        mine = bench.transcribe(utterances(1))
        await settle()
        bench.threads.run(1)  # my voice activity
        await settle()
        await bench.threads.run_all()
        assert (await other).queue_s == 0.0
        assert (await mine).queue_s == 3.0


@pytest.mark.parametrize(
    ("turns", "waited"),
    [
        pytest.param([], 0.0, id="nothing done"),
        pytest.param([Turn(0, 0, 5)], 0.0, id="at once"),
        pytest.param([Turn(1, 3, 5)], 2.0, id="before it began"),
        pytest.param([Turn(0, 1, 3), Turn(0, 3, 5)], 1.0, id="one after the other"),
        pytest.param([Turn(0, 1, 3), Turn(3, 6, 8)], 4.0, id="between two"),
        pytest.param([Turn(0, 1, 9), Turn(0, 2, 4), Turn(0, 9, 10)], 1.0, id="side by side"),
        pytest.param([Turn(5, 9, 10), Turn(0, 1, 3)], 7.0, id="in any order"),
    ],
)
def test_waiting_is_the_time_in_which_nothing_of_the_call_ran(turns: list[Turn], waited: float):
    assert waited_s(turns) == waited
