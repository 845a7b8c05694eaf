"""Models and the engine over them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from typeless_grpc.app.cores import n_cores as n_cores_here
from typeless_grpc.app.memory import free_bytes
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.catalog import Catalog, is_model_directory
from typeless_grpc.engine.channels import ChannelEngine
from typeless_grpc.engine.decoding.inference import warm_up
from typeless_grpc.engine.decoding.submission import RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.device import Device, choose_device, footprint
from typeless_grpc.engine.hub import HuggingFaceHub
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.model import Model
from typeless_grpc.engine.pool import ModelPool, PoolOptions
from typeless_grpc.engine.recognizer import Recognizer
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.whisper import WhisperModel, is_calibrated
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.context import CallThreads
from typeless_grpc.text import profanity
from typeless_grpc.text.finishing import FinishingEngine

LOADS_SIDE_BY_SIDE = 1  # each takes a core and twice the model's memory, and anybody may ask for one
# On a CPU, as in CTranslate2: more threads for one inference gain little.
MOST_CPU_THREADS = 4
MOST_CPU_WORKERS = 8
FINISHED_SIDE_BY_SIDE = 2  # transcripts whose text is worked on; Python does it, so more would only wait for each other


def catalog(settings: Settings) -> Catalog:
    """The catalogue of models these settings describe; a default model given as a path is in it by that path."""
    directories = dict(settings.model_dirs)
    if is_path(settings.model):
        directories[settings.model] = Path(settings.model).expanduser()
    return Catalog(settings.data_dir, HuggingFaceHub(), directories, download=settings.model_download)


def is_path(model: str) -> bool:
    """Whether a model is named by its directory."""
    return "/" in model or is_model_directory(Path(model))


@dataclass(frozen=True)
class BuiltEngine:
    """The engine, and what it is made of.

    model: the default one. n_workers: batches side by side; n_threads: of each, on a CPU.
    """

    model: str
    recognizer: Recognizer
    models: ModelPool[Model]
    known: Catalog
    device: Device
    n_workers: int
    n_threads: int

    def has_model(self, name: str) -> bool:
        """Whether jobs can name this model."""
        return self.models.may_load(name) and self.known.find(name) is not None

    async def warm(self) -> None:
        """Load the default model and run it once. Raises EngineFailed where it cannot be loaded."""
        model = await self.models.load(self.model)
        await asyncio.to_thread(warm_up, model)


def needs_calibration(settings: Settings, directory: Path) -> bool:
    """Whether the first load of the model in directory will measure its silence, which takes seconds."""
    if settings.encoder_window == "full":
        return False
    return not is_calibrated(directory, choose_device(settings.device, settings.compute_type), settings.data_dir)


def calibrate(settings: Settings, name: str, directory: Path) -> None:
    """Measure the silence of a model now, as its first load would. Raises EngineFailed if it cannot be loaded."""
    device = choose_device(settings.device, settings.compute_type)
    _loader(settings, device, *parallelism(settings, device))(name, directory)


def _loader(settings: Settings, device: Device, n_workers: int, n_threads: int) -> Callable[[str, Path], WhisperModel]:
    return functools.partial(
        WhisperModel,
        device=device,
        n_threads=n_threads,
        n_workers=n_workers,
        is_calibrated=settings.encoder_window != "full",
        cache_dir=settings.data_dir,
    )


@asynccontextmanager
async def build_engine(settings: Settings) -> AsyncIterator[BuiltEngine]:
    """The engine over real models. Raises SourceUnavailable where the default one is not on this machine."""
    async with AsyncExitStack() as stack:
        vad_threads = stack.enter_context(CallThreads(settings.decode_threads, "vad"))
        live_vad_threads = stack.enter_context(CallThreads(settings.decode_threads, "live-vad"))
        loading = stack.enter_context(ThreadPoolExecutor(LOADS_SIDE_BY_SIDE, "loading"))
        device = choose_device(settings.device, settings.compute_type)
        n_workers, n_threads = parallelism(settings, device)
        inference = stack.enter_context(ThreadPoolExecutor(n_workers, "inference"))
        is_full_window = settings.encoder_window == "full"
        load = _loader(settings, device, n_workers, n_threads)
        known = catalog(settings)
        loadable = frozenset(settings.user_models) if settings.user_models else None
        pool = PoolOptions(settings.model, settings.max_model_memory_bytes, loadable)
        models: ModelPool[Model] = ModelPool(
            *(known, load, loading, SystemClock(), pool),
            footprint=functools.partial(footprint, device=device),
            free_bytes=free_bytes,
        )
        if await asyncio.to_thread(known.find, settings.model) is None:
            raise SourceUnavailable(
                f"Model '{settings.model}' is not on this machine: typeless models pull {settings.model}",
                reason="MODEL_UNAVAILABLE",
            )
        scheduler: WindowScheduler = Scheduler(
            run_batch, SchedulerOptions(settings.max_batch, n_workers=n_workers), SystemClock(), inference
        )
        await scheduler.start()
        stack.push_async_callback(scheduler.stop)
        options = RecognizerOptions(settings.model, settings.beam_size, is_full_window)
        recognizer = Recognizer(
            models,
            SileroDetector(),
            scheduler,
            options,
            vad_threads=vad_threads,
            live_vad_threads=live_vad_threads,
        )
        yield BuiltEngine(settings.model, recognizer, models, known, device, n_workers, n_threads)


@contextmanager
def finishing(settings: Settings, engine: Engine) -> Iterator[Engine]:
    """The engine for recordings as callers want them: several channels, and the last touches to the text."""
    with CallThreads(FINISHED_SIDE_BY_SIDE, "finishing") as threads:
        yield FinishingEngine(ChannelEngine(engine), profanity.load(settings.profanity_file), threads)


def parallelism(settings: Settings, device: Device, n_cores: int | None = None) -> tuple[int, int]:
    """Batches decoded side by side, and the threads of each; as set, else as measured: docs/measurements/threads.md.

    On a CPU there are at least two, which share the cores: decoding gains little from threads. n_cores: those this
    process may use, its container's quota included.
    """
    cores = n_cores or n_cores_here()
    n_threads = settings.cpu_threads or min(MOST_CPU_THREADS, max(1, cores // 2))
    if settings.engine_workers:
        return settings.engine_workers, n_threads
    if device.name != "cpu" or cores == 1:
        return 1, n_threads
    return min(MOST_CPU_WORKERS, max(2, cores // n_threads)), n_threads
