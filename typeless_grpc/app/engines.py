"""The engine of a front: processes that the front starts, or engines on other machines."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from typeless_grpc.app.cores import n_cores, shares, usable_cores
from typeless_grpc.app.memory import free_bytes
from typeless_grpc.app.models import BuiltEngine, catalog, check_installed, checked_pool_options, finishing
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.app.tracing import NO_TRACERS, Tracers
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.config.engine import EngineSettings
from typeless_grpc.engine.catalog import Catalog
from typeless_grpc.engine.device import choose_device, n_gpus
from typeless_grpc.engine.observer import EngineObserver, EngineObservers
from typeless_grpc.engines.connection import RemoteOptions
from typeless_grpc.engines.group import EngineGroup, GroupOptions
from typeless_grpc.engines.models import GroupModels
from typeless_grpc.engines.process import EngineProcess, ProcessOptions, python
from typeless_grpc.engines.remote import RemoteEngine
from typeless_grpc.engines.shared_audio import SharedAudio
from typeless_grpc.errors import EngineFailed, SourceUnavailable
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# `auto`, on CPUs: docs/measurements/engines.md.
CORES_PER_PROCESS = 8
# Besides the weights: Python, its libraries, and the work of a few batches.
PROCESS_BYTES = 400 * 1024**2
MAX_AUTO = 64
MIN_WAIT_S = 60.0
# What an engine process is given, apart from where it listens.
PASSED = frozenset(EngineSettings.model_fields) - {
    *("engine_processes", "engine_address", "engine_listen", "engine_key", "engine_ca_file")
}
ALSO_PASSED = frozenset({"data_dir", "max_held_audio_s", "log_level", "log_format", "log_text"})


def n_processes(settings: Settings) -> int:
    """Return how many engine processes a server starts; 1 if its own process decodes."""
    if settings.engine_processes != "auto":
        return settings.engine_processes
    if settings.device != "cpu" and (gpus := n_gpus()):
        return min(MAX_AUTO, gpus)
    directory = catalog(settings).find(settings.model)
    n_by_memory = _n_by_memory(directory, free_bytes()) if directory else MAX_AUTO
    return max(1, min(MAX_AUTO, n_cores() // CORES_PER_PROCESS, n_by_memory))


def _n_by_memory(directory: Path, free: int | None) -> int:
    """Return how many processes fit into half of the free memory, estimated from the size of the model's file."""
    try:
        stored_bytes = (directory / "model.bin").stat().st_size
    except OSError:
        return MAX_AUTO
    return MAX_AUTO if free is None else free // 2 // (PROCESS_BYTES + stored_bytes)


@dataclass(frozen=True)
class Connected:
    """Engines that are connected, or will be. processes: those of this server, none for engines on other machines."""

    group: EngineGroup
    engines: Sequence[RemoteEngine]
    models: GroupModels
    processes: Sequence[EngineProcess]

    async def warm(self) -> None:
        """Wait until an engine is up. Raises EngineFailed if a process of this server ends before that."""
        up = asyncio.create_task(self.group.up())
        waiting: set[asyncio.Future[Any]] = {up, *(process.failed_to_start for process in self.processes)}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if up not in done:
            message = "An engine process ended before it was ready; its last log lines show why."
            raise EngineFailed(message, reason="ENGINE_NOT_STARTED")

    def runs_on(self) -> str:
        """Return where models run, for people."""
        reported = next((engine.runs_on for engine in self.engines if engine.runs_on), "unknown")
        return f"{len(self.engines)} x {reported}" if len(self.engines) > 1 else reported


@asynccontextmanager
async def engine_group(
    settings: Settings, metrics: EngineMetrics, reloads: Reloads | None = None, tracers: Tracers = NO_TRACERS
) -> AsyncIterator[BuiltEngine]:
    """Connect the engines that the settings name, and start their processes if they are this server's.

    Raises SourceUnavailable if the default model is not on this machine and its engines are.
    """
    if not settings.engine_address:
        await check_installed(catalog(settings), settings.model)
    reloads = reloads or Reloads(settings)
    observer = EngineObservers([metrics, *tracers.engine])
    async with connected(settings, observer, metrics, reloads) as parts:
        metrics.watch_queue(parts.group.n_queued)
        metrics.watch_models(parts.models.memory_bytes)
        metrics.watch_engines(lambda: {engine.name: engine.is_up for engine in parts.engines})

        async def warm() -> None:
            await parts.warm()
            for engine in parts.engines:
                if engine.default_model not in ("", settings.model):
                    log.warning("engine has another default model", engine=engine.name, model=engine.default_model)

        with finishing(settings, parts.group, reloads, tracers) as engine:
            yield BuiltEngine(
                model=settings.model,
                engine=engine,
                detector=SileroDetector(),
                models=parts.models,
                known=parts.models,
                warm=warm,
                runs_on=parts.runs_on,
            )


@asynccontextmanager
async def connected(
    settings: Settings,
    observer: EngineObserver,
    metrics: EngineMetrics,
    reloads: Reloads,
    *,
    module: str = "typeless_grpc.app.engine_process",
) -> AsyncIterator[Connected]:
    """Connect engines, and start the processes of this server's own.

    observer: of what all engines do. metrics: of the engines themselves. module: what the processes run.
    """
    async with AsyncExitStack() as stack:
        on_change: list[Callable[[], None]] = []
        processes: list[EngineProcess] = []
        if settings.engine_address:
            engines = _linked(settings, observer, on_change)
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="typeless-")))  # mode 0700
            engines = []
            known = catalog(settings)
            for name, placement in _placements(settings, module, lambda: _shared_audio(stack)):
                socket = directory / name
                line = placement.line(settings, socket)
                process = EngineProcess(name, placement.process, line, SystemClock(), metrics.engine_restarted)
                reloads.follow(_checked(known, functools.partial(placement.line, socket=socket)), process.apply)
                engines.append(_own(process, socket, placement.shared, settings, observer, on_change))
                processes.append(process)
        for engine in engines:
            reloads.follow(lambda settings: settings.engine_stall_s, engine.follow_stall_s)
            if settings.engine_address:
                reloads.follow(lambda settings: settings.engine_key.get_secret_value(), engine.follow_key)
        group = EngineGroup(
            engines,
            SystemClock(),
            GroupOptions(max_wait_s=max(MIN_WAIT_S, settings.engine_stall_s)),
            on_retry=metrics.engine_retries.inc,
        )
        on_change.append(group.changed)
        models = GroupModels(engines)
        work = [*(one.run() for one in processes), *(one.run() for one in engines), models.run()]
        for one in work:
            stack.push_async_callback(cancelled, asyncio.create_task(one, name="engine-group"))
        yield Connected(group, engines, models, processes)


def _linked(settings: Settings, observer: EngineObserver, on_change: list[Callable[[], None]]) -> list[RemoteEngine]:
    """Return engines on other machines."""
    authority = settings.engine_ca_file
    if authority is not None:
        try:
            authority.read_bytes()
        except OSError as error:
            why = f"engine_ca_file {authority} cannot be read: {error.strerror}"
            raise SourceUnavailable(why, reason="TLS_UNUSABLE") from error
    credentials = None if authority is None else functools.partial(_credentials, authority)
    key, stall_s = settings.engine_key.get_secret_value(), settings.engine_stall_s
    return [
        RemoteEngine(
            address,
            RemoteOptions(target=address, credentials=credentials, key=key, stall_s=stall_s),
            SystemClock(),
            observer,
            on_change=lambda: _call(on_change),
        )
        for address in settings.engine_address
    ]


def _credentials(authority: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.read_bytes())


def _own(
    process: EngineProcess,
    socket: Path,
    shared: SharedAudio | None,
    settings: Settings,
    observer: EngineObserver,
    on_change: list[Callable[[], None]],
) -> RemoteEngine:
    """Return the engine of a process of this server."""

    def changed() -> None:
        if engine.is_up:
            process.ready()
        _call(on_change)

    engine = RemoteEngine(
        process.name,
        RemoteOptions(target=f"unix:{socket}", stall_s=settings.engine_stall_s, is_own=True, shared=shared),
        SystemClock(),
        observer,
        on_change=changed,
        on_lost=process.lost,
    )
    return engine


@dataclass(frozen=True)
class _Placement:
    """Where an engine process runs: on its cores, on all if none are named, and on the GPU of its environment."""

    process: ProcessOptions
    cores: Sequence[int]
    n_cores: int
    shared: SharedAudio | None

    def line(self, settings: Settings, socket: Path) -> str:
        """Return what the process reads from its standard input. socket: where it listens."""
        given = {
            "settings": settings.model_dump(mode="json", include=set(PASSED | ALSO_PASSED)),
            "socket": str(socket),
            "cores": list(self.cores),
            "n_cores": self.n_cores,
            "shared": self.shared and self.shared.descriptor,
        }
        return json.dumps(given)


def _shared_audio(stack: AsyncExitStack) -> SharedAudio | None:
    """Return memory for the audio of one engine's calls; None on systems that cannot share it."""
    try:
        shared = SharedAudio()
    except OSError:
        return None
    stack.callback(shared.close)
    return shared


def _placements(
    settings: Settings, module: str, share: Callable[[], SharedAudio | None]
) -> Iterator[tuple[str, _Placement]]:
    """Yield the name of each process, and where it runs. share: allocates the memory that one of them shares."""
    n = n_processes(settings)
    usable = usable_cores()
    quota = n_cores()
    # A quota does not say which cores to use, so engines with one are bounded by their threads alone.
    pinned = shares(usable, n) if quota == len(usable) else [()] * n
    gpus = _gpus(settings)
    for index in range(n):
        environment = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
        shared = share()
        process = ProcessOptions(python(module), environment, [shared.descriptor] if shared else [])
        yield f"engine-{index}", _Placement(process, pinned[index], max(1, quota // n), shared)


def _checked(known: Catalog, line: Callable[[Settings], str]) -> Callable[[Settings], str]:
    """Return `line` for settings that engines would take. It raises InvalidInput for others."""

    def parse(settings: Settings) -> str:
        checked_pool_options(known, settings)
        return line(settings)

    return parse


def _gpus(settings: Settings) -> list[str]:
    """Return the GPUs to use, as CUDA_VISIBLE_DEVICES names them; none for engines on CPUs."""
    if choose_device(settings.device, settings.compute_type).name != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [one.strip() for one in visible.split(",") if one.strip()] or [str(one) for one in range(n_gpus())]


def _call(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()
