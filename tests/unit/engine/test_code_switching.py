"""Chunks in which the language changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.engine.bench import ENGLISH, RecognizerBench, audio, serving, utterances
from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.code_switching import DetectedUtterance, language_runs, split_at_pauses
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Lane,
    Ticket,
)
from typeless_grpc.engine.model import Hypothesis
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.scripted_model import RecordedDecode, hypothesis_of
from typeless_grpc.errors import InvalidInput
from typeless_grpc.speech.languages import Languages

# ---- where a chunk is cut ---------------------------------------------------------------------------------------

RATE = 16_000


def chunk(*seconds: tuple[float, float]) -> Chunk:
    speech = tuple(Span(round(start_s * RATE), round(end_s * RATE)) for start_s, end_s in seconds)
    return Chunk(0, speech[-1].end, speech, max_pause=RATE)


def test_utterances_end_at_pauses_and_are_long_enough_to_detect_their_language():
    found = split_at_pauses(chunk((0, 1), (1.1, 3), (3.5, 4), (5, 6.5), (7.0, 7.4)))
    assert [(one.spans[0].start / RATE, one.spans[-1].end / RATE) for one in found] == [(0, 3), (3.5, 7.4)]
    assert [one.speech_s for one in found] == [pytest.approx(2.9), pytest.approx(2.4)]


def test_a_language_is_detected_on_the_first_seconds_of_an_utterance():
    (utterance,) = split_at_pauses(chunk((1, 20)))
    beginning = utterance.beginning()
    assert (beginning.start, beginning.end) == (1 * RATE, round(5.5 * RATE))
    assert beginning.speech == (Span(beginning.start, beginning.end),)


def test_a_chunk_is_cut_in_the_pause_where_its_language_changes():
    whole = chunk((0, 2), (3, 5), (6, 8), (9, 11))
    languages = [("es", 0.9), ("es", 0.8), ("en", 0.95), ("es", 0.99)]
    detected = [DetectedUtterance(one, *of) for one, of in zip(split_at_pauses(whole), languages, strict=True)]
    runs = language_runs(whole, detected)
    assert [(run.chunk.start / RATE, run.chunk.end / RATE, run.language, run.probability) for run in runs] == [
        (0, 5.5, "es", 0.8),
        (5.5, 8.5, "en", 0.95),
        (8.5, 11, "es", 0.99),
    ]
    assert tuple(span for run in runs for span in run.chunk.speech) == whole.speech


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


def spanish_then_english(decode: RecordedDecode) -> Hypothesis:
    """A text in the wrong language is less likely."""
    language, has_both = decode.task.language, is_spanish(decode.audio) and is_english(decode.audio)
    is_right = has_both or (language == "es") == is_spanish(decode.audio)
    return hypothesis_of(f"in {language}", avg_logprob=-0.2 if is_right else -0.4)


def with_two_languages(bench: RecognizerBench) -> None:
    bench.model.detects, bench.model.script = detects, spanish_then_english


def switching(*, pause_s: float = 0.8) -> Audio:
    spanish, english = audio(0.5, 4.0, pause_s), audio(0.0, 5.0, 0.5) * 0.7
    return np.concatenate([spanish, english])


async def test_a_chunk_is_decoded_in_the_languages_of_its_parts():
    async with serving() as bench:
        with_two_languages(bench)
        recognition = await bench.transcribe(switching(), DecodeOptions())
    transcript = recognition.transcript
    assert [(segment.language, segment.text) for segment in transcript.segments] == [("es", "in es"), ("en", "in en")]
    assert transcript.segments[0].end_s <= transcript.segments[1].start_s
    assert (transcript.language, recognition.n_chunks) == ("en", 2)  # the longer part
    assert transcript.language_probability == pytest.approx(0.95)


async def test_a_language_that_makes_no_likelier_text_is_rejected():
    def spanish_with_a_cough(decode: RecordedDecode) -> Hypothesis:
        found = spanish_then_english(decode)
        return replace(found, avg_logprob=-0.45) if decode.task.language == "en" else found

    async with serving() as bench:
        bench.model.detects, bench.model.script = detects, spanish_with_a_cough
        recognition = await bench.transcribe(switching(), DecodeOptions())
    assert {segment.language for segment in recognition.transcript.segments} == {"es"}
    assert recognition.n_chunks == 1


async def test_the_language_of_earlier_speech_is_expected():
    async with serving() as bench:
        bench.model.detects = lambda audio: [("es", 0.5), ("de", 0.4)]
        await bench.transcribe(utterances(3), DecodeOptions(expected_language="de", chunking=Chunking.VAD))
    assert [decode.task.language for decode in bench.model.decodes] == ["de"] * 3
    assert len(bench.model.batches) == 1


async def test_a_given_language_is_not_detected_in_utterances():
    async with serving() as bench:
        with_two_languages(bench)
        await bench.transcribe(switching(), ENGLISH)
    assert [decode.task.language for decode in bench.model.decodes] == ["en"]
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
async def test_a_language_that_the_model_lacks_is_refused_in_every_field(
    options: DecodeOptions, field: str, reason: str
):
    async with serving() as bench:
        with pytest.raises(InvalidInput) as caught:
            await bench.transcribe(utterances(1), options)
    assert (caught.value.violations[0].field, caught.value.reason) == (field, reason)
