"""Real speech through a real server and a real model: the text, its times and its language."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from tests.harness import AUDIO, fixture
from typeless_grpc.client import AsyncClient, CallFailed, Options, RawFormat
from typeless_grpc.pb.v1.transcript_pb2 import Transcript

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

ROWS = json.loads((AUDIO / "manifest.json").read_text("utf-8"))
normalized = EnglishTextNormalizer()
RAW = RawFormat("pcm_s16le", 16_000)


async def transcribed(client: AsyncClient, file: str, options: Options | None = None) -> Transcript:
    raw = RAW if file.endswith(".raw") else None
    return (await client.transcribe(AUDIO / file, options, raw_format=raw, timeout_s=120)).transcript


def wer(reference: str, text: str) -> float:
    return float(jiwer.wer(normalized(reference), normalized(text)))


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row["language"] == "en" and row["kind"] in {"speech", "variant", "long"}],
    ids=lambda row: row["file"],
)
async def test_english_is_transcribed(row: dict[str, Any], tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, row["file"])
    assert wer(row["text"], transcript.text) <= 0.05
    assert transcript.audio_duration.ToTimedelta().total_seconds() == pytest.approx(row["duration_s"], abs=0.1)
    assert transcript.model == "tiny.en"


def seconds(offset: Any) -> float:
    return float(offset.ToMicroseconds() / 1e6)


@pytest.mark.parametrize("file", ["en_two_sentences.flac", "en_numbers.ogg", "en_minute.ogg"])
async def test_words_have_times_in_order_and_inside_the_audio(file: str, tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, file, Options(word_timestamps=True))
    audio_s = seconds(transcript.audio_duration)
    words = [word for segment in transcript.segments for word in segment.words]
    starts, ends = [seconds(word.start_offset) for word in words], [seconds(word.end_offset) for word in words]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= audio_s for start, end in zip(starts, ends, strict=True))
    assert all(0 <= word.confidence <= 1 for word in words)
    assert all(word.text == word.text.strip() != "" for word in words)
    for segment in transcript.segments:
        assert "".join(segment.text.split()) == "".join(word.text for word in segment.words)
        assert seconds(segment.start_offset) <= seconds(segment.words[0].start_offset) + 0.5
        assert seconds(segment.words[-1].end_offset) <= seconds(segment.end_offset) + 0.5


async def test_words_have_the_times_at_which_they_are_spoken(tiny_en: AsyncClient):
    # The pause between the two sentences is digital silence: no word may lie across it.
    transcript = await transcribed(tiny_en, "en_two_sentences.flac", Options(word_timestamps=True, language="en"))
    words = {word.text.strip(".,").lower(): word for segment in transcript.segments for word in segment.words}
    assert seconds(words["good"].start_offset) == pytest.approx(0.15, abs=0.25)
    assert seconds(words["coming"].end_offset) <= seconds(words["train"].start_offset)
    assert seconds(words["minutes"].end_offset) == pytest.approx(5.67, abs=0.3)


async def test_without_word_timestamps_there_are_none(tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, "en_two_sentences.flac")
    assert all(not segment.words for segment in transcript.segments)


async def test_segments_are_in_order_and_inside_the_audio(tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, "en_minute.ogg")
    assert [segment.index for segment in transcript.segments] == list(range(len(transcript.segments)))
    spans = [(seconds(segment.start_offset), seconds(segment.end_offset)) for segment in transcript.segments]
    assert all(start <= end <= seconds(transcript.audio_duration) for start, end in spans)
    assert all(before[0] <= after[0] for before, after in pairwise(spans))
    assert all(end - start <= 30.5 for start, end in spans)
    assert " ".join(segment.text for segment in transcript.segments) == transcript.text
    assert 0 < seconds(transcript.speech_duration) <= seconds(transcript.audio_duration)


@pytest.mark.parametrize("language", ["es", "de", "fr", "zh"])
async def test_a_language_is_recognized(language: str, base: AsyncClient):
    row = fixture(f"{language}_sentence.ogg")
    transcript = await transcribed(base, row["file"])
    assert transcript.language == language
    assert transcript.language_probability > 0.5
    assert {segment.language for segment in transcript.segments} == {language}
    if language == "zh":
        assert float(jiwer.cer(row["text"], transcript.text)) <= 0.3
    else:
        assert float(jiwer.wer(row["text"].lower(), transcript.text.lower())) <= 0.2


async def test_a_given_language_is_not_detected(base: AsyncClient):
    transcript = await transcribed(base, "es_sentence.ogg", Options(language="es-MX"))
    assert (transcript.language, transcript.language_probability) == ("es", 1.0)


async def test_speech_is_translated_into_english(base: AsyncClient):
    transcript = await transcribed(base, "de_sentence.ogg", Options(task="translate", language="de"))
    assert {"cake", "neighbors"} <= set(normalized(transcript.text).split())
    assert transcript.language == "de"


@pytest.mark.parametrize(
    "options",
    [Options(hotwords=["Kubrendo", "Typlexa"]), Options(prompt="Kubrendo, Typlexa.")],
    ids=["hotwords", "prompt"],
)
async def test_hotwords_bring_unusual_names(options: Options, tiny_en: AsyncClient):
    without = await transcribed(tiny_en, "en_names.ogg")
    assert "Kubrendo" not in without.text
    transcript = await transcribed(tiny_en, "en_names.ogg", options)
    assert "Kubrendo" in transcript.text
    assert "Typlexa" in transcript.text


def samples(kind: str) -> bytes:
    rng, n_samples = np.random.default_rng(7), 8 * 16_000
    time_s = np.arange(n_samples) / 16_000
    sound = {
        "silence": np.zeros(n_samples),
        "quiet noise": rng.normal(0, 0.002, n_samples),
        "white noise": rng.normal(0, 0.1, n_samples),
        "hum": 0.2 * np.sin(2 * np.pi * 50 * time_s),
        "clicks": np.where(np.arange(n_samples) % 16_000 < 20, 0.8, 0.0),
    }[kind]
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("kind", ["silence", "quiet noise", "white noise", "hum", "clicks"])
async def test_audio_without_speech_gives_no_text(kind: str, base: AsyncClient):
    transcript = (await base.transcribe(samples(kind), raw_format=RAW, timeout_s=120)).transcript
    assert transcript.text == ""
    assert not transcript.segments
    assert seconds(transcript.audio_duration) == 8.0
    assert all(one.reason for one in transcript.suppressed)


@pytest.mark.parametrize("suffix", ["m4a", "flac", "mp3"])
async def test_a_recording_that_was_cut_off_is_refused(suffix: str, tiny_en: AsyncClient):
    with pytest.raises(CallFailed) as caught:
        await transcribed(tiny_en, f"en_short_truncated.{suffix}")
    assert caught.value.reason == "AUDIO_TRUNCATED"


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (Options(language="de"), "INVALID_ARGUMENT", "LANGUAGE_NOT_SUPPORTED"),
        (Options(language="xx"), "INVALID_ARGUMENT", "LANGUAGE_NOT_SUPPORTED"),
        (Options(model="nonesuch"), "NOT_FOUND", "MODEL_NOT_FOUND"),
    ],
    ids=["not english", "no language", "no model"],
)
async def test_unsupported_options_are_refused(options: Options, code: str, reason: str, tiny_en: AsyncClient):
    with pytest.raises(CallFailed) as caught:
        await transcribed(tiny_en, "en_short.flac", options)
    assert (caught.value.code.name, caught.value.reason) == (code, reason)


async def test_an_english_model_does_not_translate(tiny_en: AsyncClient):
    with pytest.raises(CallFailed) as caught:
        await transcribed(tiny_en, "en_short.flac", Options(task="translate"))
    assert caught.value.fields[0][0] == "options.task"


async def test_a_cancelled_call_frees_the_engine(tiny_en: AsyncClient):
    long = asyncio.create_task(transcribed(tiny_en, "en_minute.ogg", Options(beam_size=5)))
    await asyncio.wait([long], timeout=0.3)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert normalized((await transcribed(tiny_en, "en_short.flac")).text) == "please close the window"


async def test_concurrent_calls_get_their_own_results(tiny_en: AsyncClient):
    files = ["en_short.flac", "en_two_sentences.flac", "en_numbers.ogg"] * 2
    answers = await asyncio.gather(*(transcribed(tiny_en, file) for file in files))
    for file, answer in zip(files, answers, strict=True):
        assert wer(fixture(file)["text"], answer.text) <= 0.1, file
