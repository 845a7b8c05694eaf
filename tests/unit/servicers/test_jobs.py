"""Where the work of a JobsService call is done; the calls themselves are in tests/service."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.conftest import Stores, chunk
from typeless_grpc.interceptors.status import code_of
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.sources.checked import NoSources
from typeless_grpc.speech.transcript import Transcript


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
        servicer = JobsServicer(
            stores.jobs,
            stores.uploads,
            NoSources(),
            executor,
            executor,
            has_model=lambda name: True,
            code_of=code_of,
        )
        answer = await servicer.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id), None)  # type: ignore[arg-type]
    assert answer.job.transcript.text == "a"
    assert threads
    assert threading.main_thread() not in threads
