"""Options whose effect only a real model shows: languages, strategies, channels, and the form of the text."""

from __future__ import annotations

import io

import jiwer
import numpy as np
import opencc
import pytest
import webvtt
from whisper_normalizer.english import EnglishTextNormalizer

from tests.harness import AUDIO, fixture
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.client import AsyncClient, Options, RawFormat
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.pb.v1.transcript_pb2 import Transcript

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

normalized = EnglishTextNormalizer()


async def transcribed(client: AsyncClient, file: str, **options: object) -> Transcript:
    requested = Options(**options)  # type: ignore[arg-type]
    return (await client.transcribe(AUDIO / file, requested, timeout_s=150)).transcript


async def test_each_segment_of_a_recording_that_switches_has_its_language(base: AsyncClient):
    transcript = await transcribed(base, "es_en_switch.ogg")
    assert [segment.language for segment in transcript.segments] == ["es", "en"]
    spanish, english = transcript.segments
    assert "mañana" in spanish.text.lower()
    assert "restaurant" in english.text
    assert spanish.end_offset.ToTimedelta() <= english.start_offset.ToTimedelta()
    assert transcript.language in {"es", "en"}
    assert 0.5 < transcript.language_probability <= 1


SPOKEN = {"zh": "下午回家喝茶", "en": "thank you for coming", "es": "domingo"}


@pytest.mark.parametrize(("first", "second"), [("zh", "en"), ("en", "zh"), ("en", "es")])
async def test_both_languages_are_recognized_in_either_order(first: str, second: str, base: AsyncClient):
    files = {"zh": "zh_sentence.ogg", "es": "es_sentence.ogg", "en": "en_two_sentences.flac"}
    pause = np.zeros(16_000 * 7 // 10, np.float32)
    audio = np.concatenate([samples(files[first]), pause, samples(files[second])])
    answer = await base.transcribe(
        (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes(),
        raw_format=RawFormat("pcm_s16le", 16_000),
        timeout_s=150,
    )
    text = answer.transcript.text
    assert 0 <= text.find(SPOKEN[first]) < text.find(SPOKEN[second])
    languages = list(dict.fromkeys(segment.language for segment in answer.transcript.segments))
    # On some processors, which round otherwise, base labels the English after Chinese "zh". Its words are right.
    assert languages == [first, second] or (first, second, languages) == ("zh", "en", ["zh"])


def samples(file: str) -> Audio:
    return decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(60)).samples


async def test_a_recording_in_one_language_stays_in_it(base: AsyncClient):
    for language in ("de", "es", "fr", "zh"):
        transcript = await transcribed(base, f"{language}_sentence.ogg")
        assert {segment.language for segment in transcript.segments} == {language}
        assert transcript.language_probability > 0.5


async def test_only_allowed_languages_are_detected(base: AsyncClient):
    transcript = await transcribed(base, "es_sentence.ogg", allowed_languages=["fr", "en"])
    assert transcript.language in {"fr", "en"}
    assert (await transcribed(base, "es_sentence.ogg", allowed_languages=["es", "en"])).language == "es"


async def test_speech_is_translated_into_english(base: AsyncClient):
    transcript = await transcribed(base, "es_sentence.ogg", language="es", task="translate", post_processing="standard")
    assert transcript.language == "es"
    assert "beach" in transcript.text.lower()


async def test_chinese_is_written_in_the_requested_script(base: AsyncClient):
    simplified = await transcribed(base, "zh_sentence.ogg", language="zh", word_timestamps=True)
    traditional = await transcribed(base, "zh_sentence.ogg", language="zh-Hant", word_timestamps=True)
    assert opencc.OpenCC("t2s").convert(simplified.text) == simplified.text
    assert "".join(word.text for segment in traditional.segments for word in segment.words) == traditional.text
    assert len(simplified.text) == len(traditional.text)


@pytest.mark.parametrize("strategy", ["whole", "fixed", "vad", "hybrid", "auto"])
async def test_every_strategy_transcribes_all_of_a_long_recording_once(strategy: str, tiny_en: AsyncClient):
    answer = await tiny_en.transcribe(
        AUDIO / "en_minute.ogg", Options(chunking=strategy, word_timestamps=True), timeout_s=150
    )
    rate = jiwer.wer(normalized(fixture("en_minute.ogg")["text"]), normalized(answer.transcript.text))
    assert rate <= 0.1, answer.transcript.text
    used = transcription_pb2.ChunkingStrategy.Name(answer.stats.chunking).removeprefix("CHUNKING_STRATEGY_").lower()
    assert used == ("hybrid" if strategy == "auto" else strategy)
    assert answer.stats.chunk_count > 1
    starts = [word.start_offset.ToMicroseconds() for one in answer.transcript.segments for word in one.words]
    assert starts == sorted(starts)


PROMPT = ("The harbour master writes about the weather, the ships and the tides of the last winter. " * 46)[:4096]
HOTWORDS = [f"{name} {number}" for number in range(64) for name in ("Kubrendo", "Typlexa", "Morvanil", "Zelquist")]


@pytest.mark.parametrize("temperatures", [[], [0.0]], ids=["at once", "with fallback"])
@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize(
    "hints",
    [
        pytest.param({"prompt": PROMPT}, id="a long prompt"),
        pytest.param({"hotwords": HOTWORDS}, id="many hotwords"),
        pytest.param({"prompt": PROMPT, "hotwords": HOTWORDS}, id="both"),
    ],
)
async def test_no_prompt_and_no_hotwords_cost_text(
    hints: dict[str, object], beam_size: int, temperatures: list[float], tiny_en: AsyncClient
):
    transcript = await transcribed(tiny_en, "en_minute.ogg", beam_size=beam_size, temperatures=temperatures, **hints)
    rate = jiwer.wer(normalized(fixture("en_minute.ogg")["text"]), normalized(transcript.text))
    assert rate <= 0.1, transcript.text


async def test_the_text_of_a_prompt_is_not_in_the_transcript(base: AsyncClient):
    """Five beams go on with such a prompt to the end of a window."""
    fox = (
        "The quick brown fox jumps over the lazy dog while the harbour master writes his long report about the weather"
    )
    prompt = (f"{fox}, the ships and the tides of the last winter. " * 40)[:4000]
    transcript = await transcribed(base, "en_minute.ogg", language="en", beam_size=5, prompt=prompt)
    assert jiwer.wer(normalized(fixture("en_minute.ogg")["text"]), normalized(transcript.text)) <= 0.1, transcript.text


async def test_channels_are_transcribed_apart(tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, "two_speakers_stereo.flac", channels="separate")
    left, right = (" ".join(one.text for one in transcript.segments if one.channel == channel) for channel in (0, 1))
    assert "leave" in left.lower()
    assert "coat" in right.lower()
    assert {segment.channel for segment in (await transcribed(tiny_en, "two_speakers_stereo.flac")).segments} == {0}


async def test_subtitles_of_real_speech_can_be_read(tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, "en_minute.ogg", output_formats=["srt", "webvtt"], post_processing="basic")
    srt, vtt = (one.content for one in transcript.renditions)
    cues = list(webvtt.WebVTT.from_string(vtt, strict=True))
    assert len(cues) == len(webvtt.WebVTT.from_buffer(io.BytesIO(srt.encode()), format="srt"))
    assert len(cues) > 12
    assert all(len(line) <= 42 for cue in cues for line in cue.lines)
    assert all(0.5 <= cue.end_in_seconds - cue.start_in_seconds <= 8 for cue in cues)
    assert not any(segment.words for segment in transcript.segments)
    assert " ".join(cue.text.replace("\n", " ") for cue in cues).split() == transcript.text.split()


async def test_numbers_are_written_in_figures(tiny_en: AsyncClient):
    transcript = await transcribed(tiny_en, "en_numbers.ogg", post_processing="standard", word_timestamps=True)
    assert "24" in transcript.text
    assert "$150" in transcript.text
    assert [word.text for one in transcript.segments for word in one.words] == transcript.text.split()
