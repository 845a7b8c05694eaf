"""The server under test, in a process of its own: the whole product, around a model that waits or a real one.

The model that waits takes as long as base computes on one core, by the measured costs, and computes nothing. So what is
measured is our server, and not the model.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests import scripted_engine
from tests.hardening.audio import number_of
from typeless_grpc.app.background import keep_jobs
from typeless_grpc.app.decoding import open_decoders
from typeless_grpc.app.memory import freeze_heap, share_heaps
from typeless_grpc.app.models import finishing
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.root import listen
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.costs import decode_cost
from typeless_grpc.engine.model import DecodingTask, Encoded, Hypothesis
from typeless_grpc.engine.scripted_model import RecordedDecode, ScriptedModel
from typeless_grpc.servicers.models import ModelServicer
from typeless_grpc.telemetry import logs
from typeless_grpc.telemetry.metrics import Metrics

N_CORES = 2
SCRIPTED = "scripted"


@dataclass(frozen=True)
class Process:
    """What a process has. objects: that Python's collector tracks; kinds: of the most frequent types.

    running: the coroutines of its tasks, with the file and line where each waits.
    """

    memory_mb: float
    objects: int
    tasks: int
    threads: int
    descriptors: int
    kinds: Counter[str]
    running: Counter[str]


def process() -> Process:
    """Count what this process has, once all that nobody needs is freed."""
    for _ in range(3):
        gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    objects = gc.get_objects()
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Process(
        memory_mb=n_pages * os.sysconf("SC_PAGESIZE") / 2**20,
        objects=len(objects),
        tasks=len(asyncio.all_tasks()),
        threads=threading.active_count(),
        descriptors=len(os.listdir("/proc/self/fd")),
        kinds=Counter(dict(kinds.most_common(300))),
        running=Counter(map(_place, asyncio.all_tasks())),
    )


def _place(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    name, last = getattr(coroutine, "__qualname__", str(coroutine)), ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        last = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else last
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return f"{name} at {last}"


class WaitingModel(ScriptedModel):
    """Says the number of the audio (`audio.py`), after the time that base needs. It keeps nothing of what it did."""

    def __init__(self, slowdown: float) -> None:
        super().__init__(_number)
        self._slowdown = slowdown

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        time.sleep(self._slowdown * sum(decode_cost(one.audio_s, beam_size) for one in encoded))
        hypotheses = super().decode(encoded, tasks, beam_size=beam_size, max_tokens=max_tokens)
        self.batches.clear()
        return hypotheses


def _number(decode: RecordedDecode) -> str:
    return f"number {number_of(decode.audio)}"


@asynccontextmanager
async def scripted(settings: Settings, slowdown: float) -> AsyncIterator[int]:
    """Serve with the model that waits; yield the port."""
    metrics, reloads = Metrics(), Reloads(settings)
    async with AsyncExitStack() as stack:
        decoders, can_decode = await stack.enter_async_context(open_decoders(settings, metrics.decoders))
        share_heaps()
        built = await stack.enter_async_context(
            scripted_engine.built(
                metrics.engine, N_CORES, max_batch=settings.max_batch, make=lambda: WaitingModel(slowdown)
            )
        )
        await built.models.load(SCRIPTED)
        metrics.engine.watch_queue(built.scheduler.n_queued)
        parts: dict[str, Any] = {
            "engine": stack.enter_context(finishing(settings, built.recognizer, reloads)),
            "detector": LoudnessDetector(),
            "reloads": reloads,
            "decoders": decoders,
        }
        background = await stack.enter_async_context(keep_jobs(settings, **parts, metrics=metrics.jobs))
        models = ModelServicer(pool=built.models, catalog=scripted_engine.Shelf(), default_model=SCRIPTED)
        listening = await stack.enter_async_context(
            listen(settings, **parts, background=background, metrics=metrics, more=[models])
        )
        await can_decode
        await listening.server.serving()
        yield listening.port


@asynccontextmanager
async def real(settings: Settings) -> AsyncIterator[int]:
    """Serve as `typeless serve` does; yield the port."""
    from typeless_grpc.app.starting import build

    async with build(settings) as app:
        await app.warm()
        yield app.port


def run(directory: Path, log: Path, given: dict[str, Any], slowdown: float | None, link: Connection) -> None:
    """Serve until the other end of the link closes, or SIGTERM. slowdown: of the model that waits; None for a real one.

    link: first gets the port; then each message that comes is answered with the `Process`.
    """
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    temporary = directory / "temporary"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None
    asyncio.run(_serve(Settings(**given), slowdown, link))


async def _serve(settings: Settings, slowdown: float | None, link: Connection) -> None:
    logs.configure(settings.log_level, settings.log_format)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def answer() -> None:
        try:
            link.recv()
            link.send(process())
        except (EOFError, OSError):
            loop.remove_reader(link.fileno())
            stop.set()

    serving = real(settings) if slowdown is None else scripted(settings, slowdown)
    async with serving as port:
        freeze_heap()
        link.send(port)
        loop.add_reader(link.fileno(), answer)
        await stop.wait()
        loop.remove_reader(link.fileno())
