"""A server or worker to be killed: the product's own wiring around an engine that keeps a journal.

Each sample of a test's audio tells where it belongs: even samples hold the number of the job, odd ones the second of
the recording. The engine writes "job second length" as it begins a chunk, and "job second length done" as it ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.speech import fingerprint
from typeless_grpc.app.background import keep_jobs
from typeless_grpc.app.root import listen
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.servicers import stored
from typeless_grpc.stores.postgresql import DatabaseTimeouts
from typeless_grpc.telemetry import logs

# A job of this number takes its process down with it.
POISON = 77
DELAY_S = 0.05
LIMIT_S = 10.0  # of a call of the store
# In the same order as the defaults, and shorter, for tests that wait for them. A busy machine may need longer.
SHORT = DatabaseTimeouts(connect_s=2, lock_s=1, statement_s=1.5, answer_s=2, pool_s=1, idle_transaction_s=1)


class JournalEngine(ScriptedEngine):
    """Transcribes each chunk as "job:second", after a moment."""

    def __init__(self, journal: Path) -> None:
        super().__init__(spoken)
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


def spoken(call: EngineCall) -> str:
    """Return the identity of a job's chunk; of a stream's utterance what shows all of its audio."""
    if call.ticket.lane is Lane.LIVE_FINAL:
        return fingerprint(call.audio)
    return ":".join(map(str, identity(call.audio)))


def identity(audio: Audio) -> tuple[int, int]:
    """Return the job's number, and the second in which a chunk begins."""
    return round(float(audio[0]) * 32768), round(float(audio[1]) * 32768)


def recording(job: int, seconds: int) -> bytes:
    """Return raw samples that tell where they belong."""
    one = [job.to_bytes(2, "little") + second.to_bytes(2, "little") for second in range(seconds)]
    return b"".join(pair * (SAMPLE_RATE_HZ // 2) for pair in one)


def run(
    directory: Path, journal: Path, log: Path, settings: dict[str, Any], timeouts: DatabaseTimeouts, port: Connection
) -> None:
    """Serve until SIGTERM, with all output in a log.

    timeouts: of the database. port: gets the port once calls are accepted.
    """
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    asyncio.run(_serve(directory, journal, settings, timeouts, port))


async def _serve(
    directory: Path, journal: Path, given: dict[str, Any], timeouts: DatabaseTimeouts, port: Connection
) -> None:
    defaults = {"port": 0, "data_dir": directory, "job_chunk_s": 5.0, "job_poll_s": 0.05, "rate_limit_enabled": False}
    settings = Settings(**defaults | given)
    logs.configure("info", "json")
    stored.LIMIT_S = LIMIT_S
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = JournalEngine(journal)
    parts: dict[str, Any] = {"engine": engine, "detector": SileroDetector()}
    async with (
        keep_jobs(settings, **parts, timeouts=timeouts) as background,
        listen(settings, **parts, background=background) as listening,
    ):
        await listening.server.serving()
        port.send(listening.port)
        port.close()
        await stop.wait()
