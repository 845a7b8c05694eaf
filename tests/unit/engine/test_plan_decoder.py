"""How the chunks of a plan depend on each other: languages, strategies, overlaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.engine.bench import ENGLISH, audio, serving, utterances
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
)
from typeless_grpc.engine.model import TimedWord
from typeless_grpc.engine.scripted_model import RecordedDecode, hypothesis_of

# ---- language ---------------------------------------------------------------------------------------------------


async def test_the_longest_of_the_first_chunks_decides_which_language_to_expect():
    async with serving() as bench:
        bench.model.script = lambda decode: f"{decode.audio_s:.1f}"
        # Only the longest of the first three is clearly in German; the rest is taken to be in it as well.
        bench.model.detects = lambda audio: (
            [("de", 0.8)] if round(len(audio) / SAMPLE_RATE_HZ) == 5 else [("es", 0.5), ("de", 0.4)]
        )
        recognition = await bench.transcribe(audio(2, 3, 2, 5, 2, 4, 2, 8), DecodeOptions(chunking=Chunking.VAD))
    assert round(bench.model.decodes[0].audio_s, 1) == 5.4
    assert [decode.task.language for decode in bench.model.decodes] == ["de"] * 4
    assert len(bench.model.batches) == 2
    assert recognition.transcript.text == "3.4 5.4 4.4 8.2"  # in the order of the recording
    assert recognition.transcript.language == "de"
    assert recognition.transcript.language_probability == pytest.approx((5 * 0.8 + 15 * 0.4) / 20)


async def test_a_given_language_is_not_detected():
    async with serving() as bench:
        recognition = await bench.transcribe(utterances(3), DecodeOptions(language="zh", chunking=Chunking.VAD))
    assert [decode.task.language for decode in bench.model.decodes] == ["zh"] * 3
    assert len(bench.model.batches) == 1
    assert (recognition.transcript.language, recognition.transcript.language_probability) == ("zh", 1.0)


# ---- strategies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "audio_s", "used"),
    [
        (Chunking.AUTO, 20.0, Chunking.WHOLE),
        (Chunking.AUTO, 40.0, Chunking.HYBRID),
        *((one, 40.0, one) for one in (Chunking.WHOLE, Chunking.FIXED, Chunking.VAD, Chunking.HYBRID)),
    ],
)
async def test_the_strategy_that_was_used_is_reported(requested: Chunking, audio_s: float, used: Chunking):
    async with serving() as bench:
        recognition = await bench.transcribe(audio(1.0, audio_s - 1.0), replace(ENGLISH, chunking=requested))
    assert recognition.chunking is used
    assert recognition.n_chunks == len(bench.model.decodes)


async def test_whole_conditions_each_chunk_on_the_text_before_it():
    async with serving() as bench:
        texts = iter(["the first sentence,", "the second sentence,", "the third sentence"])
        bench.model.script = lambda decode: next(texts)
        requested = DecodeOptions(language="en", prompt="A talk.", chunking=Chunking.WHOLE)
        recognition = await bench.transcribe(utterances(3), requested)
    prompts = [decode.task.prompt for decode in bench.model.decodes]
    assert prompts == ["A talk.", "A talk. the first sentence,", "A talk. the first sentence, the second sentence,"]
    assert recognition.transcript.text == "the first sentence, the second sentence, the third sentence"


async def test_whole_does_not_condition_on_suppressed_text():
    async with serving() as bench:
        made_up = hypothesis_of("thanks for watching", no_speech_probability=0.9, avg_logprob=-2.0)
        bench.model.script = lambda decode: made_up
        await bench.transcribe(utterances(2), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert {decode.task.prompt for decode in bench.model.decodes} == {""}


async def test_the_text_that_a_chunk_is_conditioned_on_is_bounded():
    async with serving() as bench:
        bench.model.script = lambda decode: "long " * 300
        await bench.transcribe(utterances(3), replace(ENGLISH, chunking=Chunking.WHOLE))
    assert max(len(decode.task.prompt) for decode in bench.model.decodes) <= 1000


def counting(decode: RecordedDecode) -> str:
    """A word for each second of the recording; the loudness of the audio encodes the second."""
    seconds = range(int(decode.audio_s))
    return " ".join(f"w{round(float(decode.audio[round((n + 0.5) * SAMPLE_RATE_HZ)]) * 1000)}" for n in seconds)


def a_word_a_second(text: str, audio_s: float) -> list[TimedWord]:
    return [TimedWord(f" {word}", n + 0.3, n + 0.7, 0.9) for n, word in enumerate(text.split())]


@pytest.mark.parametrize("words", [False, True], ids=["without words", "with words"])
@pytest.mark.parametrize("chunking", [Chunking.FIXED, Chunking.HYBRID])
async def test_overlaps_are_merged_by_words_that_are_returned_only_on_request(chunking: Chunking, words: bool):
    # Speech without a pause, whose loudness says at which second it is: cuts in it must overlap.
    talk = np.repeat(np.arange(900, 970, dtype=np.float32) / 1000, SAMPLE_RATE_HZ)
    async with serving() as bench:
        bench.model.script, bench.model.aligns = counting, a_word_a_second
        options = DecodeOptions(language="en", chunking=chunking, word_timestamps=words)
        transcript = (await bench.transcribe(talk, options)).transcript
    assert len(bench.model.decodes) > 2
    assert transcript.text.split() == sorted(set(transcript.text.split()))
    assert len(transcript.text.split()) >= 66  # a word at the very edge of a window may not lie whole in it
    assert all(bool(segment.words) is words for segment in transcript.segments)
