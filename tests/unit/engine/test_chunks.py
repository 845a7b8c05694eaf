"""What becomes of a recording that is cut into pieces: languages that change in it, strategies, overlaps."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.test_recognizer import ENGLISH, Bench, audio, serving, utterances
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Lane, Ticket
from typeless_grpc.engine.model import Hypothesis, Languages
from typeless_grpc.engine.scripted_model import Decoding, written
from typeless_grpc.errors import InvalidInput

# ---- languages that change within a recording -------------------------------------------------------------------


def is_spanish(audio: Audio) -> bool:
    """Loud speech is Spanish."""
    return bool((audio > 0.9).any())


def is_english(audio: Audio) -> bool:
    """Speech that is less loud is English."""
    return bool(((audio > 0.5) & (audio < 0.9)).any())


def detects(audio: Audio) -> Languages:
    if is_spanish(audio) and is_english(audio):
        return [("es", 0.7), ("en", 0.3)]
    return [("es", 0.95), ("gl", 0.05)] if is_spanish(audio) else [("en", 0.95), ("de", 0.01)]


def spanish_then_english(decoding: Decoding) -> Hypothesis:
    """English is no likely text in Spanish, and the other way round."""
    language, has_both = decoding.task.language, is_spanish(decoding.audio) and is_english(decoding.audio)
    is_right = has_both or (language == "es") == is_spanish(decoding.audio)
    return written(f"in {language}", avg_logprob=-0.2 if is_right else -0.4)


def with_two_languages(bench: Bench) -> None:
    bench.model.detects, bench.model.script = detects, spanish_then_english


def switching(*, pause_s: float = 0.8) -> Audio:
    spanish, english = audio(0.5, 4.0, pause_s), audio(0.0, 5.0, 0.5) * 0.7
    return np.concatenate([spanish, english])


async def test_a_piece_is_cut_where_its_language_changes():
    async with serving() as bench:
        with_two_languages(bench)
        recognition = await bench.heard(switching(), DecodeOptions())
    transcript = recognition.transcript
    assert [(segment.language, segment.text) for segment in transcript.segments] == [("es", "in es"), ("en", "in en")]
    assert transcript.segments[0].end_s <= transcript.segments[1].start_s
    assert (transcript.language, recognition.n_chunks) == ("en", 2)  # the longer part
    assert transcript.language_probability == pytest.approx(0.95)


async def test_a_language_that_makes_no_likelier_text_was_not_spoken():
    def spanish_with_a_cough(decoding: Decoding) -> Hypothesis:
        found = spanish_then_english(decoding)
        return replace(found, avg_logprob=-0.45) if decoding.task.language == "en" else found

    async with serving() as bench:
        bench.model.detects, bench.model.script = detects, spanish_with_a_cough
        recognition = await bench.heard(switching(), DecodeOptions())
    assert {segment.language for segment in recognition.transcript.segments} == {"es"}
    assert recognition.n_chunks == 1


async def test_what_was_spoken_before_is_expected():
    async with serving() as bench:
        bench.model.detects = lambda audio: [("es", 0.5), ("de", 0.4)]
        await bench.heard(utterances(3), DecodeOptions(expected_language="de", chunking=Chunking.VAD))
    assert [decoding.task.language for decoding in bench.model.decodings] == ["de"] * 3
    assert len(bench.model.batches) == 1


async def test_a_language_that_is_given_is_not_doubted():
    async with serving() as bench:
        with_two_languages(bench)
        await bench.heard(switching(), ENGLISH)
    assert [decoding.task.language for decoding in bench.model.decodings] == ["en"]
    assert bench.model.n_encoded == 1


async def test_the_language_of_an_interim_is_detected_once():
    async with serving() as bench:
        with_two_languages(bench)
        call = asyncio.create_task(bench.engine.recognize(switching(), DecodeOptions(), Ticket(Lane.LIVE_INTERIM)))
        await bench.threads.run_all()
        await call
    assert bench.model.n_encoded == 1


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        (DecodeOptions(allowed_languages=("en", "fr")), "options.allowed_languages[1]", "LANGUAGE_NOT_SUPPORTED"),
        (DecodeOptions(language="fr"), "options.language", "LANGUAGE_NOT_SUPPORTED"),
    ],
)
async def test_an_allowed_language_the_model_lacks_is_refused(options: DecodeOptions, field: str, reason: str):
    async with serving() as bench:
        with pytest.raises(InvalidInput) as caught:
            await bench.heard(utterances(1), options)
    assert (caught.value.violations[0].field, caught.value.reason) == (field, reason)


# ---- strategies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "audio_s", "used"),
    [
        (Chunking.AUTO, 20.0, Chunking.WHOLE),
        (Chunking.AUTO, 40.0, Chunking.HYBRID),
        *((one, 40.0, one) for one in (Chunking.WHOLE, Chunking.FIXED, Chunking.VAD, Chunking.HYBRID)),
    ],
)
async def test_the_strategy_that_was_used_is_told(asked: Chunking, audio_s: float, used: Chunking):
    async with serving() as bench:
        recognition = await bench.heard(audio(1.0, audio_s - 1.0), replace(ENGLISH, chunking=asked))
    assert recognition.chunking is used
    assert recognition.n_chunks == len(bench.model.decodings)


async def test_whole_tells_each_piece_what_was_said_before_it():
    async with serving() as bench:
        texts = iter(["what was said first,", "what was said second,", "what was said third"])
        bench.model.script = lambda decoding: next(texts)
        asked = DecodeOptions(language="en", prompt="A talk.", chunking=Chunking.WHOLE)
        recognition = await bench.heard(utterances(3), asked)
    prompts = [decoding.task.prompt for decoding in bench.model.decodings]
    assert prompts == ["A talk.", "A talk. what was said first,", "A talk. what was said first, what was said second,"]
    assert recognition.transcript.text == "what was said first, what was said second, what was said third"


async def test_whole_does_not_go_on_from_what_the_model_made_up():
    async with serving() as bench:
        made_up = written("thanks for watching", no_speech_probability=0.9, avg_logprob=-2.0)
        bench.model.script = lambda decoding: made_up
        await bench.heard(utterances(2), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert {decoding.task.prompt for decoding in bench.model.decodings} == {""}


async def test_what_a_piece_is_conditioned_on_is_bounded():
    async with serving() as bench:
        bench.model.script = lambda decoding: "long " * 300
        await bench.heard(utterances(3), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert max(len(decoding.task.prompt) for decoding in bench.model.decodings) <= 1000


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
async def test_audio_whose_text_is_lost_to_a_prompt_is_decoded_without_it(
    misled: str, hints: dict[str, Any], temperatures: tuple[float, ...]
):
    async with serving() as bench:
        bench.model.script = lambda decoding: misled if decoding.task.prompt or decoding.task.hotwords else SPOKEN
        recognition = await bench.heard(utterances(1), replace(ENGLISH, temperatures=temperatures, **hints))
    assert recognition.transcript.text == SPOKEN
    assert not recognition.transcript.suppressed


@pytest.mark.parametrize("temperatures", [(), (0.0,)], ids=["at once", "with fallback"])
async def test_a_text_that_a_prompt_did_not_harm_is_decoded_once(temperatures: tuple[float, ...]):
    async with serving() as bench:
        bench.model.script = lambda decoding: SPOKEN
        await bench.heard(utterances(1), replace(ENGLISH, prompt="A talk.", temperatures=temperatures))
    assert [decoding.task.prompt for decoding in bench.model.decodings] == ["A talk."]


async def test_a_prompt_that_is_what_was_spoken_keeps_its_names():
    spoken = ECHOED.replace("town", "Kubrendo")
    async with serving() as bench:
        bench.model.script = lambda decoding: spoken if decoding.task.prompt else spoken.replace("Kubrendo", "cue")
        recognition = await bench.heard(utterances(1), replace(ENGLISH, prompt=f"So {spoken}."))
    assert recognition.transcript.text == spoken


async def test_where_no_text_is_any_good_that_with_the_prompt_is_kept():
    async with serving() as bench:
        bench.model.script = lambda decoding: "Kubrendo" if decoding.task.prompt else "the"
        recognition = await bench.heard(utterances(1), replace(ENGLISH, prompt="Kubrendo is a town."))
    assert recognition.transcript.text == "Kubrendo"


def counting(decoding: Decoding) -> str:
    """A word for each second of the recording, which the loudness of the audio tells."""
    seconds = range(int(decoding.audio_s))
    return " ".join(f"w{round(float(decoding.audio[round((n + 0.5) * SAMPLE_RATE_HZ)]) * 1000)}" for n in seconds)


def a_word_a_second(text: str, audio_s: float) -> list[TimedWord]:
    return [TimedWord(f" {word}", n + 0.3, n + 0.7, 0.9) for n, word in enumerate(text.split())]


@pytest.mark.parametrize("words", [False, True], ids=["without words", "with words"])
@pytest.mark.parametrize("chunking", [Chunking.FIXED, Chunking.HYBRID])
async def test_overlaps_are_merged_on_words_that_are_told_only_where_they_were_asked_for(
    chunking: Chunking, words: bool
):
    # Speech without a pause, whose loudness says at which second it is: cuts in it must overlap.
    talk = np.repeat(np.arange(900, 970, dtype=np.float32) / 1000, SAMPLE_RATE_HZ)
    async with serving() as bench:
        bench.model.script, bench.model.aligns = counting, a_word_a_second
        options = DecodeOptions(language="en", chunking=chunking, word_timestamps=words)
        transcript = (await bench.heard(talk, options)).transcript
    assert len(bench.model.decodings) > 2
    assert transcript.text.split() == sorted(set(transcript.text.split()))
    assert len(transcript.text.split()) >= 66  # a word at the very edge of a window may not lie whole in it
    assert all(bool(segment.words) is words for segment in transcript.segments)
