"""Shared by several suites: a real server around a scripted engine, the project's recordings, a second of sound."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np

from typeless_grpc.app.background import keep_jobs
from typeless_grpc.app.models import finishing
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.root import listen
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.clock import Clock
from typeless_grpc.config import Loaded, Settings
from typeless_grpc.engine.interface import Engine
from typeless_grpc.pb.v1 import (
    audio_pb2,
    jobs_pb2_grpc,
    server_pb2_grpc,
    transcription_pb2,
    transcription_pb2_grpc,
    uploads_pb2_grpc,
)
from typeless_grpc.server import Server, Service
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.runs import SqlRunStore

REPOSITORY = Path(__file__).resolve().parents[1]
AUDIO = REPOSITORY / "tests" / "audio"


class Stubs:
    """The services behind a channel."""

    channel: Any

    @property
    def transcription(self) -> transcription_pb2_grpc.TranscriptionServiceStub:
        return transcription_pb2_grpc.TranscriptionServiceStub(self.channel)

    @property
    def jobs(self) -> jobs_pb2_grpc.JobsServiceStub:
        return jobs_pb2_grpc.JobsServiceStub(self.channel)

    @property
    def uploads(self) -> uploads_pb2_grpc.UploadServiceStub:
        return uploads_pb2_grpc.UploadServiceStub(self.channel)

    @property
    def info(self) -> server_pb2_grpc.ServerServiceStub:
        return server_pb2_grpc.ServerServiceStub(self.channel)


@dataclass(frozen=True)
class Served(Stubs):
    """A server of one test, and a channel to it. target: "127.0.0.1:PORT". given: the settings of the test."""

    server: Server
    target: str
    channel: grpc.aio.Channel
    reloads: Reloads
    given: dict[str, Any]

    async def reload(self, **settings: Any) -> bool:
        """Reload the settings with these instead; return whether they were good."""
        return await self.reloads.reload(lambda: Loaded(Settings(**self.given | settings), {}))


@asynccontextmanager
async def serving(
    engine: Engine,
    *,
    warm: bool = True,
    more: Sequence[Service] = (),
    clock: Clock | None = None,
    decoders: Decoders = IN_PROCESS,
    **settings: Any,
) -> AsyncIterator[Served]:
    """A real server on a free port, wired as the product is, around an engine of the test's choice.

    What is loud is speech to it (`LoudnessDetector`). clock: of its streams. decoders: of containers.
    """
    # Limits are off, since most tests are one eager caller; data is the test's own.
    defaults: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "drain_timeout_s": 1.0, "rate_limit_enabled": False}
    async with AsyncExitStack() as stack:
        defaults["data_dir"] = stack.enter_context(TemporaryDirectory())
        wanted = Settings(**defaults | settings)
        reloads = Reloads(wanted)
        finished = stack.enter_context(finishing(wanted, engine, reloads))
        listening = await stack.enter_async_context(
            listen(
                wanted,
                engine=finished,
                detector=LoudnessDetector(),
                more=more,
                clock=clock,
                reloads=reloads,
                decoders=decoders,
            )
        )
        if warm:
            await listening.server.serving()
        target = f"127.0.0.1:{listening.port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        yield Served(listening.server, target, channel, reloads, defaults | settings)


@dataclass(frozen=True)
class ServedJobs(Served):
    """A server with jobs and uploads. store, runs: what its servicers and its worker use."""

    store: SqlJobStore
    runs: SqlRunStore


@asynccontextmanager
async def serving_jobs(
    engine: Engine,
    data_dir: Path,
    *,
    more: Sequence[Service] = (),
    decoders: Decoders = IN_PROCESS,
    **settings: Any,
) -> AsyncIterator[ServedJobs]:
    """The same with jobs and uploads in data_dir; they are run in this process unless max_concurrent_jobs is 0."""
    defaults = {"host": "127.0.0.1", "port": 0, "drain_timeout_s": 1.0, "rate_limit_enabled": False}
    given = defaults | {"data_dir": data_dir} | settings
    wanted = Settings(**given)
    reloads = Reloads(wanted)
    known = {"", "tiny"}
    async with AsyncExitStack() as stack:
        parts: dict[str, Any] = {"detector": detector(), "reloads": reloads, "decoders": decoders}
        parts["engine"] = stack.enter_context(finishing(wanted, engine, reloads))
        background = await stack.enter_async_context(keep_jobs(wanted, **parts, has_model=known.__contains__))
        listening = await stack.enter_async_context(listen(wanted, **parts, more=more, background=background))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{listening.port}"))
        await listening.server.serving()
        runs = SqlRunStore(background.table, background.sources)
        store = SqlJobStore(background.table)
        target = f"127.0.0.1:{listening.port}"
        yield ServedJobs(listening.server, target, channel, reloads, given, store, runs)


@cache
def detector() -> SileroDetector:
    """The voice activity model, loaded once for all tests."""
    return SileroDetector()


def fixture(file: str) -> dict[str, Any]:
    """Return the manifest's row of one of the project's recordings."""
    rows = json.loads((AUDIO / "manifest.json").read_text(encoding="utf-8"))
    return next(row for row in rows if row["file"] == file)


def pcm(seconds: float = 1.0, *, rate_hz: int = 16_000) -> bytes:
    """A quiet tone as raw signed 16-bit samples."""
    n_samples = round(seconds * rate_hz)
    tone = 3000 * np.sin(2 * np.pi * 440 * np.arange(n_samples) / rate_hz)
    return tone.astype("<i2").tobytes()


def request(seconds: float = 1.0, **options: Any) -> transcription_pb2.TranscribeRequest:
    """A well-formed request with a tone of this length."""
    return transcription_pb2.TranscribeRequest(
        audio=audio_pb2.AudioSource(
            content=pcm(seconds),
            format=audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000),
        ),
        options=transcription_pb2.TranscriptionOptions(**options),
    )
