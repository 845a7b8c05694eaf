"""Engine processes with a real model: the same text as in one process, also if they are killed."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import psutil
import pytest

from tests.harness import AUDIO
from tests.scripted_engine import count, until
from typeless_grpc.app.engines import engine_group
from typeless_grpc.app.models import BuiltEngine, build_engine, catalog
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import DecodeOptions, PostProcessing, Recognition, Ticket
from typeless_grpc.engine.interface import Mode as TextMode
from typeless_grpc.telemetry.metrics import Metrics

pytestmark = pytest.mark.model

RECORDINGS = ("en_short.wav", "en_two_sentences.flac", "en_numbers.ogg", "two_speakers_stereo.flac")
OPTIONS = DecodeOptions(
    word_timestamps=True, separate_channels=True, post_processing=PostProcessing(TextMode.STANDARD, {"train": "bus"})
)


async def transcribed(
    building: AbstractAsyncContextManager[BuiltEngine], *, kills_engines: bool = False
) -> list[Recognition]:
    async with building as built:
        await built.warm()
        assert "tiny.en" in built.models.loaded()
        assert built.has_model("tiny.en")
        await until(lambda: built.engine.backlog_s == 0)
        audio = [
            decode((AUDIO / name).read_bytes(), AudioFormat(), DecodeLimits(60.0), separate_channels=True)
            for name in RECORDINGS
        ]
        calls = [asyncio.create_task(built.engine.transcribe(one.samples, OPTIONS, Ticket())) for one in audio * 2]
        if kills_engines:
            await until(lambda: any(call.done() for call in calls))
            engines = [one for one in psutil.Process().children() if "engine_process" in " ".join(one.cmdline())]
            assert len(engines) == 2
            for one in engines:
                one.kill()
        return await asyncio.gather(*calls)


async def test_the_text_is_that_of_one_process():
    settings = Settings(model="tiny.en", device="cpu", engine_processes=2)
    if catalog(settings).find("tiny.en") is None:
        pytest.skip("model tiny.en is not on this machine: typeless models pull tiny.en")
    expected = await transcribed(build_engine(settings, Metrics().engine))
    metrics = Metrics().engine
    found = await transcribed(engine_group(settings, metrics), kills_engines=True)
    assert found == [replace(one, queue_s=other.queue_s) for one, other in zip(expected, found, strict=True)]
    assert all(one.transcript.segments for one in found)
    assert count(metrics.engine_retries) >= 1
