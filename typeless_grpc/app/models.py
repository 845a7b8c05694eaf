"""Models and the engine over them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typeless_grpc.app.cores import n_cores as n_cores_here
from typeless_grpc.app.memory import free_bytes
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tracing import NO_TRACERS, Tracers
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.catalog import Catalog, is_model_directory
from typeless_grpc.engine.channels import ChannelEngine
from typeless_grpc.engine.decoding.inference import warm_up
from typeless_grpc.engine.decoding.submission import RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.device import Device, choose_device, footprint
from typeless_grpc.engine.hub import HuggingFaceHub
from typeless_grpc.engine.integrity import IntegrityOptions, ModelIntegrity
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.model import Model
from typeless_grpc.engine.observer import EngineObserver, EngineObservers
from typeless_grpc.engine.pool import ModelPool, PoolOptions
from typeless_grpc.engine.recognizer import Recognizer
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.served import Names, Pool
from typeless_grpc.engine.whisper import WhisperModel, is_calibrated
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.telemetry.context import CallThreads
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.text import profanity
from typeless_grpc.text.finishing import FinishingEngine

PARALLEL_LOADS = 1  # each takes a core and twice the model's memory, and any caller may cause one
# On a CPU, as in CTranslate2: more threads for one inference gain little.
MAX_CPU_THREADS = 4
MAX_CPU_WORKERS = 8
FINISHING_THREADS = 2  # for the text of transcripts: pure Python, so more threads would only wait for each other


def catalog(settings: Settings) -> Catalog:
    """Return the catalogue of models. A default model that is given as a path is in it under that path."""
    directories = dict(settings.model_dirs)
    if is_path(settings.model):
        directories[settings.model] = Path(settings.model).expanduser()
    return Catalog(settings.data_dir, HuggingFaceHub(), directories, download=settings.model_download)


def integrity(settings: Settings, known: Catalog) -> ModelIntegrity:
    """Return the check of models' files."""
    approvals = settings.approved_models_file or settings.data_dir / "approved-models.json"
    digests = settings.data_dir / "model-digests.json"
    return ModelIntegrity(IntegrityOptions(approvals, digests, settings.require_approved_models), known.digests)


def is_path(model: str) -> bool:
    """Whether a model is named by its directory."""
    return "/" in model or is_model_directory(Path(model))


@dataclass(frozen=True)
class BuiltRecognizer:
    """The engine of one process, without the work on the text, and its parts.

    model: the default model's name. detector: the one voice activity detector of this process. n_workers: batches in
    parallel; n_threads: CPU threads of each.
    """

    model: str
    recognizer: Recognizer
    scheduler: WindowScheduler
    detector: SileroDetector
    models: ModelPool[Model]
    known: Catalog
    device: Device
    n_workers: int
    n_threads: int

    @property
    def runs_on(self) -> str:
        """Where models run, for people: "cpu, int8, 2 x 1 threads"."""
        on = f"{self.device.name}, {self.device.compute_type}"
        return f"{on}, {self.n_workers} x {self.n_threads} threads" if self.device.name == "cpu" else on

    def show_in(self, metrics: EngineMetrics) -> None:
        """Show the queue and the loaded models."""
        metrics.watch_queue(self.scheduler.n_queued)
        metrics.watch_models(lambda: {name: one.memory_bytes for name, one in self.models.loaded().items()})

    async def warm(self) -> None:
        """Load the default model and run it once. Raises EngineFailed if it cannot be loaded."""
        model = await self.models.load(self.model)
        await asyncio.to_thread(warm_up, model)


@dataclass(frozen=True)
class BuiltEngine:
    """The engine as a server uses it, and its parts.

    model: the default model's name. engine: as callers use it. detector: the one voice activity detector of this
    process. models: the loaded ones. known: their names. warm: waits until the engine can be used. runs_on: where
    models run, for people; known when it is warm.
    """

    model: str
    engine: Engine
    detector: SileroDetector
    models: Pool
    known: Names
    warm: Callable[[], Coroutine[Any, Any, None]]
    runs_on: Callable[[], str]

    def has_model(self, name: str) -> bool:
        """Whether jobs may name this model."""
        return self.models.may_load(name) and self.known.find(name) is not None


async def check_installed(known: Catalog, name: str) -> None:
    """Raise SourceUnavailable if a model is not on this machine."""
    if await asyncio.to_thread(known.find, name) is None:
        message = f"Model '{name}' is not on this machine: typeless models pull {name}"
        raise SourceUnavailable(message, reason="MODEL_UNAVAILABLE")


def needs_calibration(settings: Settings, directory: Path) -> bool:
    """Whether the first load of the model in directory will measure its silence, which takes seconds."""
    if settings.encoder_window == "full":
        return False
    return not is_calibrated(directory, choose_device(settings.device, settings.compute_type), settings.data_dir)


def calibrate(settings: Settings, name: str, directory: Path) -> None:
    """Measure the silence of a model now, as its first load would. Raises EngineFailed if it cannot be loaded."""
    device = choose_device(settings.device, settings.compute_type)
    _loader(settings, catalog(settings), device, *parallelism(settings, device))(name, directory)


def _loader(
    settings: Settings, known: Catalog, device: Device, n_workers: int, n_threads: int
) -> Callable[[str, Path], WhisperModel]:
    """Return what loads a model from its directory, once its files are checked."""
    files = integrity(settings, known)

    def load(name: str, directory: Path) -> WhisperModel:
        files.check(name, directory)
        return WhisperModel(
            name,
            directory,
            device=device,
            n_threads=n_threads,
            n_workers=n_workers,
            is_calibrated=settings.encoder_window != "full",
            cache_dir=settings.data_dir,
        )

    return load


@asynccontextmanager
async def build_engine(
    settings: Settings,
    metrics: EngineMetrics,
    reloads: Reloads | None = None,
    tracers: Tracers = NO_TRACERS,
) -> AsyncIterator[BuiltEngine]:
    """Build the engine over real models. Raises SourceUnavailable if the default model is not on this machine."""
    reloads = reloads or Reloads(settings)
    observer = EngineObservers([metrics, *tracers.engine])
    async with build_recognizer(settings, observer, reloads) as built:
        built.show_in(metrics)
        with finishing(settings, built.recognizer, reloads, tracers) as engine:
            yield BuiltEngine(
                model=settings.model,
                engine=engine,
                detector=built.detector,
                models=built.models,
                known=built.known,
                warm=built.warm,
                runs_on=lambda: built.runs_on,
            )


@asynccontextmanager
async def build_recognizer(
    settings: Settings, observer: EngineObserver, reloads: Reloads, n_cores: int | None = None
) -> AsyncIterator[BuiltRecognizer]:
    """Build the engine without the work on the text. n_cores: what it may use; None for all of this process.

    Raises SourceUnavailable if the default model is not on this machine.
    """
    async with AsyncExitStack() as stack:
        device = choose_device(settings.device, settings.compute_type)
        n_workers, n_threads = parallelism(settings, device, n_cores)
        known = catalog(settings)
        models: ModelPool[Model] = ModelPool(
            source=known,
            load=_loader(settings, known, device, n_workers, n_threads),
            executor=stack.enter_context(ThreadPoolExecutor(PARALLEL_LOADS, "loading")),
            clock=SystemClock(),
            options=pool_options(settings),
            footprint=functools.partial(footprint, device=device),
            free_bytes=free_bytes,
        )
        reloads.follow(functools.partial(checked_pool_options, known), models.set_options)
        await check_installed(known, settings.model)
        scheduler: WindowScheduler = Scheduler(
            run_batch=run_batch,
            options=SchedulerOptions(max_batch=settings.max_batch, n_workers=n_workers),
            clock=SystemClock(),
            executor=stack.enter_context(ThreadPoolExecutor(n_workers, "inference")),
            observer=observer,
        )
        await scheduler.start()
        stack.push_async_callback(scheduler.stop)
        detector = SileroDetector()
        recognizer = Recognizer(
            models=models,
            detector=detector,
            scheduler=scheduler,
            options=recognizer_options(settings),
            vad_threads=stack.enter_context(CallThreads(settings.decode_threads, "detecting")),
            live_vad_threads=stack.enter_context(CallThreads(settings.decode_threads, "detecting-live")),
            observer=observer,
        )
        yield BuiltRecognizer(
            model=settings.model,
            recognizer=recognizer,
            scheduler=scheduler,
            detector=detector,
            models=models,
            known=known,
            device=device,
            n_workers=n_workers,
            n_threads=n_threads,
        )


def pool_options(settings: Settings) -> PoolOptions:
    """Return the model pool's part of the settings."""
    return PoolOptions(
        default_model=settings.model,
        max_memory_bytes=settings.max_model_memory_bytes,
        loadable=frozenset(settings.user_models) if settings.user_models else None,
    )


def checked_pool_options(known: Catalog, settings: Settings) -> PoolOptions:
    """Return the model pool's part of new settings. Raises InvalidInput if they allow a model that nobody knows."""
    names = set(known.names())
    unknown = [name for name in settings.user_models if name not in names and known.find(name) is None]
    if unknown:
        raise InvalidInput("user_models", f"no model is called {', '.join(unknown)}", reason="CONFIG_INVALID")
    return pool_options(settings)


def recognizer_options(settings: Settings) -> RecognizerOptions:
    """Return the recognizer's part of the settings."""
    return RecognizerOptions(
        default_model=settings.model,
        beam_size=settings.beam_size,
        is_full_window=settings.encoder_window == "full",
    )


@contextmanager
def finishing(
    settings: Settings, engine: Engine, reloads: Reloads | None = None, tracers: Tracers = NO_TRACERS
) -> Iterator[Engine]:
    """Wrap an engine as callers use it: with separate channels, and with the work on the text."""
    with CallThreads(FINISHING_THREADS, "finishing") as threads:
        finished = FinishingEngine(
            engine=ChannelEngine(engine),
            profanity=profanity.load(settings.profanity_file),
            executor=threads,
            observer=tracers.text,
        )
        if reloads is not None:
            reloads.follow(lambda settings: profanity.load(settings.profanity_file), finished.use)
        yield finished


def parallelism(settings: Settings, device: Device, n_cores: int | None = None) -> tuple[int, int]:
    """Return how many batches run in parallel, and the threads of each.

    The defaults are measured: docs/measurements/threads.md. A CPU runs at least two batches, which share the cores,
    because one gains little from more threads. n_cores: what this process may use, its container's quota included.
    """
    cores = n_cores or n_cores_here()
    n_threads = settings.cpu_threads or min(MAX_CPU_THREADS, max(1, cores // 2))
    if settings.engine_workers:
        return settings.engine_workers, n_threads
    if device.name != "cpu" or cores == 1:
        return 1, n_threads
    return min(MAX_CPU_WORKERS, max(2, cores // n_threads)), n_threads
