"""Where the work of a JobsService call is done; the calls themselves are in tests/service."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.contract.conftest import Stores, chunk
from typeless_grpc.audio.source import AudioSources, no_bound
from typeless_grpc.errors import RateLimited
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.sources.checked import NoSources
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files


def jobs_servicer(stores: Stores, sources: AudioSources, executor: Executor) -> JobsServicer:
    return JobsServicer(
        stores.jobs, stores.uploads, sources, executor, executor, has_model=lambda name: True, code_of=code_of
    )


async def test_a_transcript_is_put_into_its_message_beside_the_event_loop(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    job = stores.submit(owner="")
    run = stores.runs.claim(job.job_id, "w1")
    assert run is not None
    stores.runs.keep_chunk(run, chunk(0, "a", is_last=True))
    stores.runs.complete(run)
    transcript, threads = convert.transcript, []

    def converted(value: Transcript) -> Any:
        threads.append(threading.current_thread())
        return transcript(value)

    monkeypatch.setattr(convert, "transcript", converted)
    with ThreadPoolExecutor(1) as executor:
        servicer = jobs_servicer(stores, NoSources(), executor)
        answer = await servicer.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id), None)  # type: ignore[arg-type]
    assert answer.job.transcript.text == "a"
    assert threads
    assert threading.main_thread() not in threads


class SixBytesEach:
    """Recordings of six bytes: a download ends once all of them have reserved their bytes, or were refused."""

    def __init__(self, n_at_once: int) -> None:
        self._together = threading.Barrier(n_at_once)

    def is_remote(self, uri: str) -> bool:
        return True

    def open(self, uri: str, owner: str | None, field: str, reserve: Callable[[int], None] = no_bound) -> BinaryIO:
        try:
            reserve(6)
        finally:
            self._together.wait(10)
        return io.BytesIO(b"123456")


async def test_fetches_at_once_do_not_exceed_the_storage_quota_of_their_caller(database: Database, tmp_path: Path):
    stores, n_at_once = Stores.over(database, Files(str(tmp_path / "files")), max_owner_bytes=15), 4
    with ThreadPoolExecutor(n_at_once) as executor:
        servicer = jobs_servicer(stores, SixBytesEach(n_at_once), executor)
        request = jobs_pb2.SubmitJobRequest()
        request.audio.uri = "https://media.example.com/a.wav"
        submitting = [servicer.SubmitJob(request, None) for _ in range(n_at_once)]  # type: ignore[arg-type]
        answers = await asyncio.gather(*submitting, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert (len(refused), {error.reason for error in refused}) == (2, {"UPLOAD_QUOTA_EXCEEDED"})
    assert len(stores.files.names("jobs")) == 2
