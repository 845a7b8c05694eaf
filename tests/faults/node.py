"""A server or worker to be killed: the product's own wiring around an engine that writes down what it is asked.

    python -m tests.faults.node DIRECTORY JOURNAL '{"max_concurrent_jobs": 3, …}'

Each sample of a test's audio says whose it is: even samples hold the number of the job, odd ones the second they lie
in. The engine notes "job second length" as it begins a chunk, and "job second length done" once it is done with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from typeless_grpc.app.background import keep_jobs
from typeless_grpc.app.root import listen
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.telemetry import logs

# A job of this number takes its process down with it.
POISON = 77
DELAY_S = 0.05


class JournalEngine(ScriptedEngine):
    """Returns "job:second" for each chunk, after a short time."""

    def __init__(self, journal: Path) -> None:
        super().__init__(lambda call: ":".join(map(str, identity(call.audio))))
        self._journal = journal.open("a", buffering=1)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        job, second = identity(audio)
        self._journal.write(f"{job} {second} {len(audio)}\n")
        if job == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(DELAY_S)
        recognition = await super().transcribe(audio, options, ticket)
        self._journal.write(f"{job} {second} {len(audio)} done\n")
        self.calls.clear()
        return recognition


def identity(audio: Audio) -> tuple[int, int]:
    """The job's number, and the second in which a chunk begins."""
    return round(float(audio[0]) * 32768), round(float(audio[1]) * 32768)


def recording(job: int, seconds: int) -> bytes:
    """Raw samples that say whose they are."""
    one = [job.to_bytes(2, "little") + second.to_bytes(2, "little") for second in range(seconds)]
    return b"".join(pair * (SAMPLE_RATE_HZ // 2) for pair in one)


async def main(directory: Path, journal: Path, given: str) -> None:
    defaults = {"port": 0, "data_dir": directory, "job_chunk_s": 5.0, "job_poll_s": 0.05, "rate_limit_enabled": False}
    settings = Settings(**defaults | json.loads(given))
    logs.configure("info", "json")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = JournalEngine(journal)
    parts: dict[str, Any] = {"engine": engine, "detector": SileroDetector()}
    async with (
        keep_jobs(settings, **parts) as background,
        listen(settings, **parts, background=background) as listening,
    ):
        await listening.server.serving()
        print(listening.port, flush=True)  # noqa: T201
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
