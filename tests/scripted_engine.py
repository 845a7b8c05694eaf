"""An engine process around a scripted model: `python -m tests.scripted_engine` is what a front starts in tests.

The prompt of a call says what the model does with it; see `script`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Counter

from typeless_grpc.app.engine_process import main
from typeless_grpc.app.engine_server import EngineServer, serve_port, serve_socket
from typeless_grpc.app.engines import Connected, connected
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.decoding.submission import RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.observer import EngineObserver, NoObserver
from typeless_grpc.engine.pool import ModelPool, PoolOptions
from typeless_grpc.engine.recognizer import Recognizer
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.scripted_model import RecordedDecode, ScriptedModel
from typeless_grpc.engines.reports import Reports
from typeless_grpc.engines.servicer import Served
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.telemetry.metrics import Metrics

MODULE = "tests.scripted_engine"
TIMEOUT_S = 20.0
JOURNAL = "SCRIPTED_JOURNAL"  # a file to which each decode writes its process and its prompt when it begins
PAUSES_S = {"brief": 0.05, "slow": 0.4, "busy": 1.0, "hang": 3600.0}
MODELS = ("scripted", "other")


def script(decode: RecordedDecode) -> str | Exception:
    """Do what the prompt's first word says: brief, slow, busy, wait, hang, die or fail.

    wait: until `release`. The text is the prompt and the length.
    """
    prompt = decode.task.prompt
    if journal := os.environ.get(JOURNAL):
        with open(journal, "a") as file:
            file.write(f"{os.getpid()}\t{prompt}\n")
    word = prompt.partition(" ")[0]
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PAUSES_S.get(word, 0.0))
    if word == "wait":
        _wait_for_release()
    return ValueError("no") if word == "fail" else f"{prompt or 'hello'} {decode.audio_s:.1f}"


def _wait_for_release() -> None:
    n_releases, deadline_s = _n_releases(), time.monotonic() + 60.0
    while not _gate().exists() and _n_releases() == n_releases and time.monotonic() < deadline_s:
        time.sleep(0.01)


def _gate() -> Path:
    return Path(os.environ[JOURNAL]).with_suffix(".released")


def _releases() -> Path:
    return _gate().with_suffix(".releases")


def _n_releases() -> int:
    """How often `release` was called: it ends a decode that waits, also if `hold` follows at once."""
    return _releases().stat().st_size if _releases().exists() else 0


class Shelf:
    """The models of the process; all but "missing" are installed."""

    def names(self) -> list[str]:
        return [*MODELS, "missing"]

    def find(self, name: str) -> Path | None:
        return Path(name) if name in MODELS else None

    def get(self, name: str) -> Path:
        return Path(name)


@dataclass(frozen=True)
class Built:
    """A recognizer over scripted models, and its parts."""

    recognizer: Recognizer
    scheduler: WindowScheduler
    models: ModelPool[Any]


@asynccontextmanager
async def built(
    observer: EngineObserver | None = None,
    n_workers: int = 1,
    *,
    max_batch: int = 1,
    make: Callable[[], ScriptedModel] = lambda: ScriptedModel(script),
) -> AsyncIterator[Built]:
    """The engine over scripted models. max_batch: windows at a time for each worker. make: makes a model."""

    def load(name: str, directory: Path) -> ScriptedModel:
        model = make()
        model.name = name
        return model

    async with AsyncExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(4, name)) for name in ("inference", "detecting", "loading")]
        scheduler: WindowScheduler = Scheduler(
            run_batch, SchedulerOptions(max_batch=max_batch, n_workers=n_workers), SystemClock(), threads[0], observer
        )
        models: ModelPool[Any] = ModelPool(Shelf(), load, threads[2], SystemClock(), PoolOptions("scripted", 2**30))
        await scheduler.start()
        stack.push_async_callback(scheduler.stop)
        recognizer = Recognizer(
            models=models,
            detector=LoudnessDetector(),
            scheduler=scheduler,
            options=RecognizerOptions("scripted", beam_size=1),
            vad_threads=threads[1],
            live_vad_threads=threads[1],
            observer=observer or NoObserver(),
        )
        yield Built(recognizer, scheduler, models)


def served(engine: Built) -> Served:
    return Served(engine.recognizer, engine.scheduler, engine.models, Shelf(), "scripted", "nothing")


@asynccontextmanager
async def serve(reloads: Reloads, socket: str, n_cores: int, shared: int | None) -> AsyncIterator[EngineServer]:
    reports = Reports()
    async with (
        built(reports) as engine,
        serve_socket(reloads, socket, served(engine), reports, _warm(engine), shared) as server,
    ):
        yield server


@asynccontextmanager
async def on_port(reloads: Reloads | None = None, **settings: Any) -> AsyncIterator[EngineServer]:
    """A scripted engine of this process on an address."""
    reports = Reports()
    wanted = reloads or Reloads(Settings(drain_timeout_s=5.0, **settings))
    async with built(reports) as engine, serve_port(wanted, served(engine), reports, _warm(engine)) as server:
        await server.warming
        yield server


def _warm(engine: Built) -> Any:
    async def warm() -> None:
        await engine.models.load("scripted")

    return warm


# ---- for tests ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def group(
    metrics: EngineMetrics | None = None, reloads: Reloads | None = None, **settings: Any
) -> AsyncIterator[Connected]:
    """Engine processes with scripted models, once one of them is up; all of them if they are several."""
    wanted = Settings(device="cpu", log_level="warning", **settings)
    metrics = metrics or Metrics().engine
    async with connected(wanted, metrics, metrics, reloads or Reloads(wanted), module=MODULE) as parts:
        await parts.warm()
        yield parts


def options(prompt: str = "", **more: Any) -> DecodeOptions:
    return DecodeOptions(language="en", prompt=prompt, **more)


def speech(*seconds: float, pause_s: float = 2.0) -> Audio:
    """Noise of these lengths, each after a pause."""
    noise = np.random.default_rng(1)
    parts: list[Audio] = []
    for one in seconds:
        parts.append(np.zeros(round(pause_s * SAMPLE_RATE_HZ), np.float32))
        parts.append(noise.normal(0, 0.2, round(one * SAMPLE_RATE_HZ)).astype(np.float32))
    return np.concatenate(parts)


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait for something in another process. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 # another process sets no event
            await asyncio.sleep(0.01)


def release() -> None:
    """Let the decodes with the prompt "wait" end, these and later ones, until `hold`."""
    with open(_releases(), "ab") as file:
        file.write(b".")
    _gate().touch()


def hold() -> None:
    """Undo `release`."""
    _gate().unlink(missing_ok=True)


def begun(journal: Path) -> Sequence[str]:
    """The prompts of the decodes that have begun."""
    return [prompt for _, prompt in begun_in_turn(journal)]


def begun_by_process(journal: Path) -> Sequence[Sequence[str]]:
    """The same for each process that decodes."""
    found: dict[str, list[str]] = {}
    for process, prompt in begun_in_turn(journal):
        found.setdefault(process, []).append(prompt)
    return list(found.values())


def begun_in_turn(journal: Path) -> Sequence[tuple[str, str]]:
    """The decodes that have begun: the id of the process, and the prompt."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [(process, prompt) for process, _, prompt in (line.partition("\t") for line in lines)]


def text_of(recognition: Any) -> str:
    return re.sub(r" [0-9.]+$", "", " ".join(segment.text for segment in recognition.transcript.segments))


def count(counter: Counter, **labels: str) -> float:
    (value,) = [
        sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels == labels
    ]
    return value


if __name__ == "__main__":
    main(serve)
