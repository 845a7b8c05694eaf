"""A killed and a frozen engine under a live stream and calls of all lanes: they see a delay, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import scripted_engine
from tests.faults.test_streams_survive import kept, raw_samples
from tests.harness import ServedJobs, request, serving_jobs
from tests.scripted_engine import count, options, speech, text_of, until
from typeless_grpc.app.engines import Connected
from typeless_grpc.client import AsyncClient, Options, RawFormat, StreamOptions
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse
from typeless_grpc.telemetry.metrics import Metrics

RAW = RawFormat("pcm_s16le", 16_000)
STREAMED_S = 24
PART_BYTES = 3200  # a tenth of a second
STALL_S = 2.0


class LiveStream:
    """A stream with interims, some ten times as fast as it was spoken. It pauses until `goes_on` is set."""

    def __init__(self, target: str) -> None:
        self.goes_on = asyncio.Event()
        self.events: list[StreamTranscribeResponse] = []
        self._target = target

    async def _audio(self) -> AsyncIterator[bytes]:
        data = raw_samples()[: STREAMED_S * 32_000]
        for start in range(0, len(data), PART_BYTES):
            if start > len(data) / 2:
                await self.goes_on.wait()
            yield data[start : start + PART_BYTES]
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        wanted = StreamOptions(Options(language="en", prompt="brief"), RAW, interim_results=True)
        async with AsyncClient(self._target) as client:
            async for event in client.stream(self._audio(), wanted):
                self.events.append(event)

    def has(self, kind: str) -> bool:
        return any(event.HasField(kind) for event in self.events)  # type: ignore[arg-type]


async def unary(served: ServedJobs, prompt: str) -> str:
    answer = await served.transcription.Transcribe(request(1.0, language="en", prompt=prompt))
    return answer.transcript.text.rpartition(" ")[0]


async def job(served: ServedJobs, prompt: str) -> str:
    async with AsyncClient(served.target) as client:
        submitted = await client.jobs.submit(
            raw_samples()[: 4 * 32_000], Options(language="en", prompt=prompt), raw_format=RAW
        )
        ended = await client.jobs.wait(submitted.job_id)
    assert ended.state == jobs_pb2.JOB_STATE_COMPLETED
    return ended.transcript.text.rpartition(" ")[0]


async def direct(parts: Connected, prompt: str, lane: Lane, caller: str) -> str:
    return text_of(await parts.group.recognize(speech(0.5), options(prompt), Ticket(lane, caller)))


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_stream_and_calls_of_all_lanes_survive_an_engine(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    metrics = Metrics().engine
    async with (
        scripted_engine.group(metrics, engine_processes=2, engine_stall_s=STALL_S) as parts,
        serving_jobs(parts.group, tmp_path) as served,
    ):
        await until(lambda: all(engine.is_up for engine in parts.engines))
        undisturbed = LiveStream(served.target)
        undisturbed.goes_on.set()
        await undisturbed.run()
        assert undisturbed.has("interim")

        stream = LiveStream(served.target)
        streaming = asyncio.create_task(stream.run())
        await until(lambda: stream.has("segment") and stream.has("interim"))
        prompts = [f"slow {number}" for number in range(8)]
        calls = [
            *(unary(served, prompt) for prompt in prompts[:2]),
            *(job(served, prompt) for prompt in prompts[2:4]),
            direct(parts, prompts[4], Lane.BATCH, "ann"),
            direct(parts, prompts[5], Lane.BATCH, "bob"),
            direct(parts, prompts[6], Lane.LIVE_FINAL, "ann"),
            direct(parts, prompts[7], Lane.JOBS, "bob"),
        ]
        running = [asyncio.create_task(call) for call in calls]
        victim, process = parts.engines[0], parts.processes[0]
        stream.goes_on.set()
        await until(lambda: victim.n_sent)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        assert await asyncio.gather(*running) == prompts
        await streaming
        assert kept(stream.events) == kept(undisturbed.events)
        await until(lambda: all(engine.is_up for engine in parts.engines))
    assert count(metrics.engine_restarts, reason="exited" if how == "killed" else "silent") == 1
    assert count(metrics.engine_retries) >= 1
    assert "engine was lost; its call is decoded again" in caplog.text
    assert "engine process ended; it is started again" in caplog.text
