"""What becomes of a recording that is cut into pieces: languages that change in it, strategies, overlaps."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.engine.test_recognizer import ENGLISH, audio, said, serving, utterances
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Lane, Ticket
from typeless_grpc.engine.transcript import Word
from typeless_grpc.engine.verification import Doubt
from typeless_grpc.engine.whisper import Heard, Window
from typeless_grpc.errors import InvalidInput

# ---- languages that change within a recording -------------------------------------------------------------------


def spanish_then_english(window: Window) -> Heard:
    """Whisper on a piece whose first half (loud) is Spanish and whose second (less so) is English."""
    is_spanish, is_english = bool((window.audio > 0.9).any()), bool(((window.audio > 0.5) & (window.audio < 0.9)).any())
    language = window.options.language or ("es" if is_spanish else "en")
    if window.detect_only:
        return Heard((), language, 0.95)
    if window.may_be_mixed and is_spanish and is_english:
        return Heard((), "es", 0.7, (Doubt.MIXED,))
    # English is no likely text in Spanish, and the other way round.
    is_right = (language == "es") == is_spanish or (is_spanish and is_english)
    known = replace(window, options=replace(window.options, language=language))
    return said(f"in {language}", known, avg_logprob=-0.2 if is_right else -0.8)


def switching(*, pause_s: float = 0.8) -> Audio:
    spanish, english = audio(0.5, 4.0, pause_s), audio(0.0, 5.0, 0.5) * 0.7
    return np.concatenate([spanish, english])


async def test_a_piece_is_cut_where_its_language_changes():
    async with serving() as bench:
        bench.model.languages = ("en", "es")
        bench.model.script = spanish_then_english
        recognition = await bench.heard(switching(), DecodeOptions())
    transcript = recognition.transcript
    assert [(segment.language, segment.text) for segment in transcript.segments] == [("es", "in es"), ("en", "in en")]
    assert transcript.segments[0].end_s <= transcript.segments[1].start_s
    assert (transcript.language, recognition.n_chunks) == ("en", 2)  # the longer part
    assert transcript.language_probability == 0.95


async def test_a_language_that_makes_no_likelier_text_was_not_spoken():
    def spanish_with_a_cough(window: Window) -> Heard:
        heard = spanish_then_english(window)
        if heard.language != "en" or not heard.segments:
            return heard
        return replace(heard, segments=(replace(heard.segments[0], avg_logprob=-0.9),))

    async with serving() as bench:
        bench.model.languages = ("en", "es")
        bench.model.script = spanish_with_a_cough
        recognition = await bench.heard(switching(), DecodeOptions())
    assert {segment.language for segment in recognition.transcript.segments} == {"es"}
    assert recognition.n_chunks == 1


async def test_what_was_spoken_before_is_expected():
    async with serving() as bench:
        await bench.heard(utterances(3), DecodeOptions(expected_language="de", chunking=Chunking.VAD))
    assert [window.expected for window in bench.model.asked] == ["de"] * 3
    assert len(bench.model.batches) == 1


async def test_a_language_that_is_given_is_not_doubted():
    async with serving() as bench:
        bench.model.script = spanish_then_english
        await bench.heard(switching(), ENGLISH)
    assert [(window.may_be_mixed, window.detect_only) for window in bench.model.asked] == [(False, False)]


async def test_an_interim_is_not_looked_at_twice():
    async with serving() as bench:
        call = asyncio.create_task(bench.engine.recognize(switching(), DecodeOptions(), Ticket(Lane.LIVE_INTERIM)))
        await bench.threads.run_all()
        await call
    assert [window.may_be_mixed for window in bench.model.asked] == [False]


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
    assert recognition.n_chunks == len(bench.model.asked)


async def test_whole_tells_each_piece_what_was_said_before_it():
    async with serving() as bench:
        texts = iter(["one", "two", "three"])
        bench.model.script = lambda window: said(next(texts), window)
        asked = DecodeOptions(language="en", prompt="A talk.", chunking=Chunking.WHOLE)
        recognition = await bench.heard(utterances(3), asked)
    prompts = [window.options.prompt for window in bench.model.asked]
    assert prompts == ["A talk.", "A talk. one", "A talk. one two"]
    assert recognition.transcript.text == "one two three"


async def test_whole_does_not_go_on_from_what_the_model_made_up():
    async with serving() as bench:
        bench.model.script = lambda window: said("thanks for watching", window, silent=0.9, avg_logprob=-2.0)
        await bench.heard(utterances(2), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert [window.options.prompt for window in bench.model.asked] == ["", ""]


async def test_what_a_piece_is_conditioned_on_is_bounded():
    async with serving() as bench:
        bench.model.script = lambda window: said("long " * 300, window)
        await bench.heard(utterances(3), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert max(len(window.options.prompt) for window in bench.model.asked) <= 1000


def counting(window: Window) -> Heard:
    """A word for each second of the recording, which the loudness of the audio tells."""
    words = []
    for second in range(int(window.audio_s)):
        loudness = float(window.audio[round((second + 0.5) * SAMPLE_RATE_HZ)])
        words.append(Word(f"w{round(loudness * 1000)}", second + 0.3, second + 0.7, 0.9))
    heard = said(" ".join(word.text for word in words), window)
    (one,) = heard.segments
    asked = tuple(words) if window.options.word_timestamps else ()
    return replace(heard, segments=(replace(one, segment=replace(one.segment, words=asked)),))


@pytest.mark.parametrize("words", [False, True], ids=["without words", "with words"])
@pytest.mark.parametrize("chunking", [Chunking.FIXED, Chunking.HYBRID])
async def test_overlaps_are_merged_on_words_that_are_told_only_where_they_were_asked_for(
    chunking: Chunking, words: bool
):
    # Speech without a pause, whose loudness says at which second it is: cuts in it must overlap.
    talk = np.repeat(np.arange(900, 970, dtype=np.float32) / 1000, SAMPLE_RATE_HZ)
    async with serving() as bench:
        bench.model.script = counting
        options = DecodeOptions(language="en", chunking=chunking, word_timestamps=words)
        transcript = (await bench.heard(talk, options)).transcript
    assert len(bench.model.asked) > 2
    assert transcript.text.split() == sorted(set(transcript.text.split()))
    assert len(transcript.text.split()) >= 66  # a word at the very edge of a window may not lie whole in it
    assert all(bool(segment.words) is words for segment in transcript.segments)


async def test_who_asks_for_care_is_heard_as_faster_whisper_hears_at_once():
    async with serving() as bench:
        await bench.heard(utterances(1), replace(ENGLISH, is_thorough=True))
    assert [window.thorough for window in bench.model.asked] == [True]
