"""A job with a real model: the same words as a call, chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import jiwer
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from tests.harness import AUDIO, fixture
from typeless_grpc.app.models import catalog
from typeless_grpc.app.starting import build
from typeless_grpc.client import AsyncClient, Options
from typeless_grpc.config import Settings
from typeless_grpc.pb.v1 import jobs_pb2

pytestmark = pytest.mark.model

normalized = EnglishTextNormalizer()


async def test_a_job_transcribes_a_recording(tmp_path: Path):
    own = {"database_url": f"sqlite:///{tmp_path}/jobs.db", "storage_url": str(tmp_path), "job_chunk_s": 20.0}
    settings = Settings(port=0, model="tiny.en", rate_limit_enabled=False, **own)
    if catalog(settings).find("tiny.en") is None:
        pytest.skip("model tiny.en is not on this machine: typeless models pull tiny.en")
    async with build(settings) as app:
        await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            job = await client.jobs.submit(AUDIO / "en_minute.ogg", Options(language="en", word_timestamps=True))
            answers = [answer async for answer in client.jobs.watch(job.job_id)]
    done = answers[-1].job
    assert done.state == jobs_pb2.JOB_STATE_COMPLETED, done.failure
    row = fixture("en_minute.ogg")
    assert jiwer.wer(normalized(row["text"]), normalized(done.transcript.text)) < 0.15
    progress = sorted({round(answer.job.progress, 3) for answer in answers})
    assert len(progress) >= 4  # it moved with the audio
    words = [word for segment in done.transcript.segments for word in segment.words]
    starts_s = [word.start_offset.ToTimedelta().total_seconds() for word in words]
    assert starts_s == sorted(starts_s)
    assert starts_s[-1] > row["duration_s"] - 10
    assert [s for answer in answers for s in answer.new_segments] == list(done.transcript.segments)
