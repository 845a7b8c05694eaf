"""Recordings of many kinds, through a real server and a real model: none is lost, and nothing is made up."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import jiwer
import pytest

from tests.conftest import Recordings
from tests.recordings.reference import compared, n_errors, n_words, normalized, reference_errors
from typeless_grpc.client import AsyncClient, CallFailed, Options, RawFormat
from typeless_grpc.pb.v1.transcript_pb2 import Transcript

pytestmark = [pytest.mark.recordings, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

log = logging.getLogger(__name__)
RAW = RawFormat("pcm_s16le", 16_000)


async def transcribed(
    client: AsyncClient, recordings: Recordings, file: str, options: Options | None = None
) -> Transcript:
    raw = RAW if file.endswith(".raw") else None
    answer = await client.transcribe(recordings.bytes_of(file), options, raw_format=raw, timeout_s=120)
    return answer.transcript


async def test_every_container_is_transcribed(recordings: Recordings, tiny_en: AsyncClient):
    wrong: dict[str, str] = {}
    for row in recordings.rows("container"):
        transcript = await transcribed(tiny_en, recordings, row["file"], Options(language="en"))
        length_s = transcript.audio_duration.ToTimedelta().total_seconds()
        # The manifest estimates the length of some files from their bit rate.
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
            transcript = await transcribed(tiny_en, recordings, row["file"])
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
        transcript = await transcribed(base, recordings, row["file"])
        if len(transcript.text.split()) >= 3:
            invented[row["file"]] = transcript.text
    assert invented == {}


@pytest.mark.timeout(900)
async def test_the_error_rate_is_that_of_faster_whisper(recordings: Recordings, tiny_en: AsyncClient):
    rows, n_at_once = compared(recordings), asyncio.Semaphore(8)

    async def errors_of(row: dict[str, Any]) -> int:
        async with n_at_once:
            transcript = await transcribed(tiny_en, recordings, row["file"], Options(language="en"))
        return n_errors(row["reference"], transcript.text)

    ours, theirs = sum(await asyncio.gather(*map(errors_of, rows))), reference_errors(recordings, rows)
    our_rate, their_rate = ours / n_words(rows), theirs / n_words(rows)
    log.info("WER over %d utterances: %.2f %%, faster-whisper %.2f %%", len(rows), 100 * our_rate, 100 * their_rate)
    assert our_rate <= their_rate + 0.005
