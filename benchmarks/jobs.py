"""The cost of jobs and uploads: `python -m benchmarks.jobs` prints a line for each number, with its limit.

The server runs in a process of its own, with an engine that returns at once, so that the jobs are measured and not the
model. `--database-url` measures PostgreSQL instead of SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from typeless_grpc.client import Client, Options, RawFormat
from typeless_grpc.pb.v1 import jobs_pb2, uploads_pb2, uploads_pb2_grpc

PCM = RawFormat("pcm_s16le", 16_000)
MB = 1024 * 1024
SETTLE_S = 3.0
HELD = "held"  # calls with this prompt never return
ENDED = "ended"  # a file that the engine creates when such a call is cancelled
N_CANCELLED = 10


@contextmanager
def server(directory: Path, **settings: object) -> Iterator[tuple[Client, str, psutil.Process]]:
    """Run a server with a scripted engine in a process of its own, whose memory and time are measured."""
    command = [sys.executable, "-m", "benchmarks.jobs", "--serve", str(directory), json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    port = int(process.stdout.readline())
    try:
        with Client(f"127.0.0.1:{port}") as client:
            warm = client.jobs.submit(bytes(32_000), raw_format=PCM)  # imports DBOS and creates its tables
            client.jobs.wait(warm.job_id)
            yield client, f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def serve(directory: Path, settings: dict[str, object]) -> None:
    """Run the server in this process."""
    from typeless_grpc.app.background import keep_jobs
    from typeless_grpc.app.memory import share_heaps
    from typeless_grpc.app.root import listen
    from typeless_grpc.audio.formats import Audio
    from typeless_grpc.audio.vad import SileroDetector
    from typeless_grpc.config import Settings
    from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket
    from typeless_grpc.engine.scripted import ScriptedEngine
    from typeless_grpc.telemetry import logs

    logs.configure("warning", "json")
    share_heaps()  # as `build` does

    class Forgetful(ScriptedEngine):
        async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
            self.calls.clear()  # else it keeps all audio
            if options.prompt == HELD:
                try:
                    await asyncio.Event().wait()
                finally:
                    (directory / ENDED).touch()
            return await super().transcribe(audio, options, ticket)

    chosen = Settings(**{"port": 0, "data_dir": directory, "rate_limit_enabled": False} | settings)  # type: ignore[arg-type]
    engine = Forgetful(lambda call: "text")
    parts: dict[str, Any] = {"engine": engine, "detector": SileroDetector()}
    async with keep_jobs(chosen, **parts) as background, listen(chosen, **parts, background=background) as listening:
        await listening.server.serving()
        print(listening.port, flush=True)
        await asyncio.Event().wait()


class Peak:
    """The peak of a process's resident memory, as far as it was sampled."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.bytes = 0

    def sample(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss)


def submit_to_start(client: Client, n_jobs: int) -> list[float]:
    """Milliseconds from the acceptance of a job to its start, by the server's times."""
    waits_ms = []
    for _ in range(n_jobs):
        job = client.jobs.wait(client.jobs.submit(bytes(32_000), raw_format=PCM).job_id)
        waits_ms.append((job.start_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e6)
    return sorted(waits_ms)


def cancel_running(client: Client, directory: Path, n_jobs: int) -> list[float]:
    """Seconds from cancelling a running job until the engine stops working on it."""
    took_s = []
    for _ in range(n_jobs):
        job = client.jobs.submit(bytes(320_000), Options(prompt=HELD), raw_format=PCM)
        while client.jobs.get(job.job_id).state != jobs_pb2.JOB_STATE_PROCESSING:
            time.sleep(0.02)
        time.sleep(0.3)  # into the chunk
        (directory / ENDED).unlink(missing_ok=True)
        began_s = time.monotonic()
        client.jobs.cancel(job.job_id)
        while not (directory / ENDED).exists():
            time.sleep(0.01)
        took_s.append(time.monotonic() - began_s)
    return sorted(took_s)


def idle_cpu(process: psutil.Process, seconds: float) -> float:
    """The share of a core that an idle server uses."""
    time.sleep(SETTLE_S)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / seconds


def job_memory(client: Client, process: psutil.Process, recording: Path) -> tuple[int, float]:
    """The peak memory while a recording is uploaded and transcribed, in bytes, and the seconds it took."""
    upload = client.jobs.upload(recording)
    peak, began_s = Peak(process), time.monotonic()
    job = client.jobs.submit(upload.uri)
    while client.jobs.get(job.job_id).state not in (jobs_pb2.JOB_STATE_COMPLETED, jobs_pb2.JOB_STATE_FAILED):
        peak.sample()
        time.sleep(0.05)
    done = client.jobs.get(job.job_id)
    assert done.state == jobs_pb2.JOB_STATE_COMPLETED, done.failure
    return peak.bytes, time.monotonic() - began_s


def upload_memory(target: str, process: psutil.Process, n_bytes: int) -> tuple[int, float]:
    """How much the process grows during an upload of this size, in bytes, and the seconds it took."""
    peak, before, began_s = Peak(process), process.memory_info().rss, time.monotonic()
    block = bytes(2 * MB)

    def requests() -> Iterator[uploads_pb2.UploadAudioRequest]:
        yield uploads_pb2.UploadAudioRequest(header=uploads_pb2.UploadHeader())
        for _ in range(n_bytes // len(block)):
            peak.sample()
            yield uploads_pb2.UploadAudioRequest(chunk=block)
        yield uploads_pb2.UploadAudioRequest(finish=uploads_pb2.UploadFinish())

    with grpc.insecure_channel(target) as channel:
        done = uploads_pb2_grpc.UploadServiceStub(channel).UploadAudio(requests())
    peak.sample()
    assert done.upload.complete
    assert done.upload.size_bytes == n_bytes
    return peak.bytes - before, time.monotonic() - began_s


def write_recording(path: Path, minutes: float) -> None:
    """Write a synthetic recording, bursts of noise with pauses, as FLAC, because encoding Opus is too slow."""
    import av

    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=16_000, layout="mono")
        second = (rng.standard_normal(16_000) * 2000).astype(np.int16)
        second[12_000:] = 0
        frame = av.AudioFrame.from_ndarray(second.reshape(1, -1), format="s16", layout="mono")
        for index in range(int(minutes * 60)):
            frame.sample_rate, frame.pts = 16_000, index * 16_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("DIRECTORY", "SETTINGS"), help=argparse.SUPPRESS)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--upload-mb", type=int, default=1024)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(Path(arguments.serve[0]), json.loads(arguments.serve[1])))
        return
    settings = {"database_url": arguments.database_url}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with server(directory / "a", **settings) as (client, target, process):
            waits_ms = submit_to_start(client, arguments.jobs)
            slow, half = waits_ms[len(waits_ms) * 99 // 100], statistics.median(waits_ms)
            print(f"submit to start        p50 {half:6.1f} ms, p99 {slow:6.1f} ms   (p50 below 60)")
            ended_s = cancel_running(client, directory / "a", N_CANCELLED)
            half_s, most_s = statistics.median(ended_s), ended_s[-1]
            print(f"cancel until it stops  p50 {half_s:6.2f} s,  most {most_s:5.2f} s    (below 2)")
            print(f"idle, jobs run here    {idle_cpu(process, arguments.idle_s):6.1%} of a core     (below 7 %)")
            grown, took_s = upload_memory(target, process, arguments.upload_mb * MB)
            print(
                f"upload of {arguments.upload_mb} MB      grew by {grown / MB:5.1f} MB in {took_s:.1f} s   (below 50)"
            )
        short, long = directory / "short.flac", directory / "long.flac"
        write_recording(short, 3.0)
        write_recording(long, 60 * arguments.hours)
        peaks = []
        for index, recording in enumerate((short, long)):
            with server(directory / f"c{index}", **settings) as (client, _, process):
                peak, took_s = job_memory(client, process, recording)
            peaks.append(peak)
            print(f"{recording.stem:<5} recording        peak {peak / MB:6.1f} MB in {took_s:.1f} s")
        print(f"long less short        {(peaks[1] - peaks[0]) / MB:6.1f} MB              (below 50)")


if __name__ == "__main__":
    main()
