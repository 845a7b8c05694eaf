"""Recordings of many kinds, through a real server and a real model: none is lost, and nothing is made up."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import faster_whisper
import jiwer
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from tests.conftest import Recordings
from typeless_grpc.app.models import catalog
from typeless_grpc.client import AsyncClient, CallFailed, Options, RawFormat
from typeless_grpc.config import Settings
from typeless_grpc.pb.v1.transcript_pb2 import Transcript

pytestmark = [pytest.mark.recordings, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

log = logging.getLogger(__name__)
normalized = EnglishTextNormalizer()
RAW = RawFormat("pcm_s16le", 16_000)


async def heard(client: AsyncClient, recordings: Recordings, file: str, options: Options | None = None) -> Transcript:
    raw = RAW if file.endswith(".raw") else None
    answer = await client.transcribe(recordings.bytes_of(file), options, raw_format=raw, timeout_s=120)
    return answer.transcript


async def test_every_container_is_transcribed(recordings: Recordings, tiny_en: AsyncClient):
    wrong: dict[str, str] = {}
    for row in recordings.rows("container"):
        transcript = await heard(tiny_en, recordings, row["file"], Options(language="en"))
        length_s = transcript.audio_duration.ToTimedelta().total_seconds()
        # The manifest guesses the length of some files from their bit rate.
        if abs(length_s - row["duration_s"]) > max(0.5, 0.1 * row["duration_s"]):
            wrong[row["file"]] = f"{length_s} s"
        if row["language"] == "en" and row["ref_quality"] in {"corpus", "asr-verified"}:
            rate = jiwer.wer(normalized(row["reference"]), normalized(transcript.text))
            if rate > 0.35:
                wrong[row["file"]] = f"{rate:.0%}: {transcript.text}"
    assert wrong == {}


# Damage that a decoder can live with: what is left is transcribed.
REASONS = {"AUDIO_UNDECODABLE", "AUDIO_TRUNCATED", "AUDIO_EMPTY", "AUDIO_MISSING", "AUDIO_TOO_LONG"}


async def test_every_malformed_recording_is_refused_clearly_or_transcribed_honestly(
    recordings: Recordings, tiny_en: AsyncClient
):
    wrong: dict[str, str] = {}
    for row in recordings.rows("malformed"):
        try:
            transcript = await heard(tiny_en, recordings, row["file"])
        except CallFailed as failed:
            if failed.code.name != "INVALID_ARGUMENT" or failed.reason not in REASONS or not failed.fields:
                wrong[row["file"]] = str(failed)
        else:
            length_s = transcript.audio_duration.ToTimedelta().total_seconds()
            n_words = len(transcript.text.split())
            if length_s == 0 or n_words > 5 * length_s + 3:
                wrong[row["file"]] = f"{length_s} s: {transcript.text}"
    assert wrong == {}


async def test_nothing_is_made_up_where_nobody_speaks(recordings: Recordings, base: AsyncClient):
    invented: dict[str, str] = {}
    for row in recordings.rows("nonspeech"):
        transcript = await heard(base, recordings, row["file"])
        if len(transcript.text.split()) >= 3:
            invented[row["file"]] = transcript.text
    assert invented == {}


def compared(recordings: Recordings) -> list[dict[str, Any]]:
    """All of the corpus: over fewer, half a point is a few words, and says nothing."""
    return [row for row in recordings.rows("speech") if (row["language"], row["ref_quality"]) == ("en", "corpus")]


@pytest.mark.timeout(900)
async def test_the_error_rate_is_that_of_faster_whisper(recordings: Recordings, tiny_en: AsyncClient):
    rows = compared(recordings)
    settings = Settings()
    directory = catalog(settings).find("tiny.en")
    model = faster_whisper.WhisperModel(str(directory), device="cpu", compute_type="int8")

    def theirs(file: str) -> str:
        segments, _ = model.transcribe(str(recordings.folder / file), language="en", beam_size=settings.beam_size)
        return " ".join(segment.text for segment in segments)

    said = [normalized(row["reference"]) for row in rows]
    ours = [normalized((await heard(tiny_en, recordings, row["file"], Options(language="en"))).text) for row in rows]
    reference = [normalized(await asyncio.to_thread(theirs, row["file"])) for row in rows]
    our_rate, their_rate = jiwer.wer(said, ours), jiwer.wer(said, reference)
    log.info("WER over %d utterances: %.2f %%, faster-whisper %.2f %%", len(rows), 100 * our_rate, 100 * their_rate)
    assert our_rate <= their_rate + 0.005
