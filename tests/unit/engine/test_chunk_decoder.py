"""How a chunk is decoded: passes, loops, early stops, prompts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.engine.bench import ENGLISH, audio, serving, unclear_below, utterances
from tests.unit.idle import until_idle
from typeless_grpc.engine.decoding.chunk_decoder import SECOND_PASS_BEAM_SIZE, SECOND_PASS_SILENCE_S, SILENCE_S
from typeless_grpc.engine.interface import (
    DecodeOptions,
    Lane,
    Task,
    Ticket,
)
from typeless_grpc.engine.model import TEMPERATURES, Hypothesis, TimedWord
from typeless_grpc.engine.scripted_model import evenly, hypothesis_of
from typeless_grpc.speech.transcript import SuppressionReason

# ---- the second pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clear_from_s", "expected"),
    [
        pytest.param(0.0, [SILENCE_S], id="confident at once"),
        pytest.param(2.0, [SILENCE_S, SECOND_PASS_SILENCE_S], id="confident in the second pass"),
        pytest.param(99.0, [SILENCE_S, SECOND_PASS_SILENCE_S], id="never confident"),
    ],
)
async def test_a_text_of_low_confidence_has_exactly_one_second_pass(clear_from_s: float, expected: list[float]):
    async with serving() as bench:
        bench.model.script = unclear_below(clear_from_s)
        recognition = await bench.transcribe(utterances(1))
    assert [decode.silence_s for decode in bench.model.decodes] == pytest.approx(expected, abs=0.05)
    assert recognition.n_chunks == 1


async def test_a_long_chunk_has_no_second_pass_for_low_confidence_alone():
    async with serving() as bench:
        bench.model.script = unclear_below(99.0)
        await bench.transcribe(audio(1.0, 16.0, 1.0))
        assert len(bench.model.decodes) == 1
        bench.model.script = lambda decode: Hypothesis("1.1.1.1", is_cut_off=True)
        await bench.transcribe(audio(1.0, 16.0, 1.0))
        assert any(decode.silence_s > 2.0 for decode in bench.model.decodes)


@pytest.mark.parametrize(
    ("text", "n_searches", "expected"),
    [
        pytest.param("a dense script", 2, "a dense script", id="many tokens"),
        pytest.param("no no no no no no", 1, "no", id="a loop"),
    ],
)
async def test_a_text_is_searched_for_with_more_tokens_unless_it_loops(text: str, n_searches: int, expected: str):
    async with serving() as bench:
        bench.model.script = lambda decode: Hypothesis(text, is_cut_off=decode.max_tokens < 60)
        bench.model.aligns = lambda text, audio_s: [
            TimedWord(f" {word}", min(index, 1) * audio_s, audio_s, 0.9) for index, word in enumerate(text.split())
        ]
        recognition = await bench.transcribe(utterances(1))
    limits = [decode.max_tokens for decode in bench.model.decodes]
    assert len(limits) == n_searches
    assert limits == sorted(set(limits))
    assert recognition.transcript.text == expected


FIRST, SECOND = "the first text", "the second text"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(
            hypothesis_of(FIRST, avg_logprob=-0.9), hypothesis_of(SECOND, avg_logprob=-0.4), SECOND, id="likelier"
        ),
        pytest.param(
            hypothesis_of(FIRST, avg_logprob=-0.9), hypothesis_of(SECOND, avg_logprob=-1.4), FIRST, id="less likely"
        ),
        pytest.param(hypothesis_of(""), hypothesis_of(SECOND, avg_logprob=-1.4), SECOND, id="the first is empty"),
        pytest.param(hypothesis_of(FIRST, avg_logprob=-0.9), hypothesis_of(""), FIRST, id="the second is empty"),
        pytest.param(
            hypothesis_of("fast " * 60), hypothesis_of(SECOND, avg_logprob=-0.9), SECOND, id="faster than speech"
        ),
    ],
)
async def test_the_better_text_of_the_two_passes_is_kept(first: Hypothesis, second: Hypothesis, expected: str):
    async with serving() as bench:
        texts = iter([first, second])
        bench.model.script = lambda decode: next(texts)
        recognition = await bench.transcribe(utterances(1))
    assert recognition.transcript.text == expected


async def test_text_that_neither_pass_can_use_is_suppressed_with_its_reason():
    async with serving() as bench:
        bench.model.script = lambda decode: Hypothesis("1.1.1.1", is_cut_off=True)
        recognition = await bench.transcribe(utterances(1))
    assert [decode.silence_s > 2.0 for decode in bench.model.decodes] == [False, False, True]
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
        await bench.transcribe(utterances(1), replace(ENGLISH, beam_size=requested))
    assert [decode.beam_size for decode in bench.model.decodes] == expected


async def test_only_the_chunk_with_low_confidence_has_a_second_pass():
    async with serving() as bench:
        bench.model.script = lambda decode: unclear_below(2.0)(decode) if decode.audio_s > 5.0 else "short"
        recognition = await bench.transcribe(audio(2.0, 4.0, 2.0, 6.0))
    assert len(bench.model.decodes) == 3
    assert recognition.transcript.text == "short long silence"


async def test_a_second_pass_does_not_delay_the_rest_of_its_batch():
    async with serving() as bench:
        bench.model.script = lambda decode: unclear_below(2.0)(decode) if decode.audio_s > 5.0 else "short"
        slow, quick = bench.start(audio(2.0, 6.0)), bench.start(utterances(1))
        await until_idle()
        bench.threads.run()
        bench.threads.run()  # both voice activities
        await bench.threads.until(n_waiting=1)
        bench.threads.run()  # one batch of both
        await until_idle()
        assert [len(batch) for batch in bench.model.batches] == [2]
        assert quick.done()
        assert not slow.done()
        await bench.threads.run_all()
        await slow


async def test_a_loop_is_removed_and_reported_and_repeated_speech_is_kept():
    async with serving() as bench:
        bench.model.script = lambda decode: "no no no no no no no no"

        def four_have_time(text: str, audio_s: float) -> list[TimedWord]:
            starts_s = [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]
            ends_s = [0.9, 1.9, 2.9, 4.0, 4.0, 4.0, 4.0, 4.0]
            return [TimedWord(" no", start_s, end_s, 0.9) for start_s, end_s in zip(starts_s, ends_s, strict=True)]

        bench.model.aligns = four_have_time
        looping = await bench.transcribe(utterances(1))
        bench.model.aligns = evenly
        repeating = await bench.transcribe(utterances(1))
    assert looping.transcript.text == "no no no no"
    assert [one.segment.text for one in looping.transcript.suppressed] == ["no no no no"]
    assert [one.reason for one in looping.transcript.suppressed] == [SuppressionReason.REPETITION]
    assert repeating.transcript.text == "no no no no no no no no"
    assert len(bench.model.decodes) == 2  # none of the two needed a second pass


async def test_speech_that_a_text_leaves_out_is_decoded_on_its_own():
    async with serving() as bench:
        texts = iter(["the beginning", "and the end of it, with as many words as there is speech"])
        bench.model.script = lambda decode: next(texts)
        bench.model.aligns = lambda text, audio_s: evenly(text, 3.0)
        recognition = await bench.transcribe(audio(1.0, 3.0, 0.5, 4.0, 1.0))
    first, rest = bench.model.decodes
    assert (first.audio_s, rest.audio_s) == pytest.approx((7.9, 4.5), abs=0.1)
    before, after = recognition.transcript.segments
    assert (before.text, after.text) == ("the beginning", "and the end of it, with as many words as there is speech")
    assert before.end_s <= after.start_s
    assert recognition.n_chunks == 2


async def test_a_short_translation_is_not_taken_for_an_early_stop():
    async with serving() as bench:
        bench.model.script = lambda decode: "short, short, short, short"
        bench.model.aligns = lambda text, audio_s: evenly(text, 1.5)
        recognition = await bench.transcribe(utterances(1), DecodeOptions(language="de", task=Task.TRANSLATE))
    assert recognition.transcript.text == "short, short, short, short"
    assert len(bench.model.decodes) == 1


async def test_full_windows_are_decoded_once_as_faster_whisper_does():
    async with serving(is_full_window=True) as bench:
        await bench.transcribe(utterances(2))
    assert [decode.temperatures for decode in bench.model.decodes] == [TEMPERATURES] * 2


async def test_an_interim_is_decoded_once_even_with_temperatures():
    async with serving() as bench:
        call = bench.engine.recognize(audio(1.0, 2.0), replace(ENGLISH, temperatures=(0.2,)), Ticket(Lane.LIVE_INTERIM))
        task = asyncio.create_task(call)
        await bench.threads.run_all()
        await task
    assert [decode.temperatures for decode in bench.model.decodes] == [()]


@pytest.mark.parametrize("temperatures", [(0.0, 0.5), (0.5,)])
async def test_temperatures_select_the_fallback_of_faster_whisper(temperatures: tuple[float, ...]):
    async with serving() as bench:
        await bench.transcribe(utterances(1), replace(ENGLISH, temperatures=temperatures))
    assert [decode.temperatures for decode in bench.model.decodes] == [temperatures]


# ---- prompt and hotwords ----------------------------------------------------------------------------------------

SPOKEN = "the text of all that was spoken here"
ECHOED = "this is a talk about a town that has eight names"


@pytest.mark.parametrize("temperatures", [(), (0.0,)], ids=["at once", "with fallback"])
@pytest.mark.parametrize(
    "hints", [{"prompt": f"So {ECHOED}."}, {"hotwords": tuple(ECHOED.split())}], ids=["prompt", "hotwords"]
)
@pytest.mark.parametrize(
    "misled",
    [
        pytest.param("", id="no text"),
        pytest.param("the", id="an early end"),
        pytest.param("Kubrendo, " * 30, id="a loop"),
        pytest.param(f"and {ECHOED}", id="the prompt's own text"),
    ],
)
async def test_a_chunk_whose_text_is_lost_to_a_prompt_is_decoded_without_it(
    misled: str, hints: dict[str, Any], temperatures: tuple[float, ...]
):
    async with serving() as bench:
        bench.model.script = lambda decode: misled if decode.task.prompt or decode.task.hotwords else SPOKEN
        recognition = await bench.transcribe(utterances(1), replace(ENGLISH, temperatures=temperatures, **hints))
    assert recognition.transcript.text == SPOKEN
    assert not recognition.transcript.suppressed


@pytest.mark.parametrize("temperatures", [(), (0.0,)], ids=["at once", "with fallback"])
async def test_a_chunk_that_a_prompt_did_not_harm_is_decoded_once(temperatures: tuple[float, ...]):
    async with serving() as bench:
        bench.model.script = lambda decode: SPOKEN
        await bench.transcribe(utterances(1), replace(ENGLISH, prompt="A talk.", temperatures=temperatures))
    assert [decode.task.prompt for decode in bench.model.decodes] == ["A talk."]


async def test_names_of_a_prompt_that_was_spoken_are_kept():
    spoken = ECHOED.replace("town", "Kubrendo")
    async with serving() as bench:
        bench.model.script = lambda decode: spoken if decode.task.prompt else spoken.replace("Kubrendo", "cue")
        recognition = await bench.transcribe(utterances(1), replace(ENGLISH, prompt=f"So {spoken}."))
    assert recognition.transcript.text == spoken


async def test_the_text_with_the_prompt_is_kept_if_the_other_is_no_better():
    async with serving() as bench:
        bench.model.script = lambda decode: "Kubrendo" if decode.task.prompt else "the"
        recognition = await bench.transcribe(utterances(1), replace(ENGLISH, prompt="Kubrendo is a town."))
    assert recognition.transcript.text == "Kubrendo"
