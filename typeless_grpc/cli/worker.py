"""`typeless worker`: runs the jobs that servers accept; it takes no calls itself."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from typeless_grpc.cli.output import failures_as_lines
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.cli.signals import end_within, hold_hang_ups, requests, say

if TYPE_CHECKING:
    from typeless_grpc.config import Loaded, Settings

STARTING_S = 1.0  # time for a worker to stop if it has not started yet


def worker(
    model: Annotated[str | None, typer.Option(help="Default model: a name or a directory; base by default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory for models and all other data.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Concurrent jobs; 3 by default.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C. Unfinished jobs continue on another worker, or at the next start.

    SIGHUP reads the settings again.

    Needs the same TYPELESS_DATABASE_URL and TYPELESS_STORAGE_URL as the servers.

    Example: typeless worker --jobs 3
    """
    flags = {
        "model": model,
        "device": device,
        "data_dir": data_dir,
        "max_concurrent_jobs": jobs,
        "log_level": log_level,
    }
    hold_hang_ups()
    with failures_as_lines():
        from typeless_grpc.app.models import catalog
        from typeless_grpc.cli.models import fetch
        from typeless_grpc.config import load
        from typeless_grpc.errors import InvalidInput
        from typeless_grpc.telemetry import logs

        settings = load_settings(flags, file=config).settings
        if not settings.max_concurrent_jobs:
            raise InvalidInput("max_concurrent_jobs", "is 0: this worker would run no jobs", reason="CONFIG_INVALID")
        logs.configure(settings.log_level, settings.log_format)
        if not settings.engine_address:
            fetch(catalog(settings), settings.model)
        asyncio.run(run_worker(settings, functools.partial(load, flags, file=config)))


async def run_worker(settings: Settings, reading: Callable[[], Loaded]) -> None:
    """Run jobs until a signal. reading: reads the settings again."""
    from typeless_grpc.app.memory import freeze_heap
    from typeless_grpc.app.starting import build_worker

    signals, has_started = requests(), asyncio.Event()
    stop = signals.stop

    async def run() -> None:
        async with build_worker(settings) as reloads:
            freeze_heap()
            has_started.set()
            say(f"typeless worker runs up to {settings.max_concurrent_jobs} jobs")
            async with reloads.running(signals.reload, reading):
                await stop.wait()
            say("Stopping: returning running jobs to the queue.", to_stderr=True)

    running, stopping = asyncio.create_task(run()), asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set() and not has_started.is_set():
        # It has no jobs yet, so it need not wait for a model that loads or a database that does not answer.
        end_within(STARTING_S)
        running.cancel()
        await asyncio.wait({running})
        return
    await running
