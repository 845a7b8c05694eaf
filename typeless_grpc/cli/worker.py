"""`typeless worker`: runs jobs that servers accept, without taking calls itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from typeless_grpc.cli.output import failures_as_lines

if TYPE_CHECKING:
    from typeless_grpc.config import Settings


def worker(
    model: Annotated[str | None, typer.Option(help="Default model: a name or a directory; base unless set.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory for models and all that is kept.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Jobs at the same time; 3 unless set.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C; what is not done then goes on elsewhere, or at the next start.

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
    with failures_as_lines():
        from typeless_grpc.app.models import catalog
        from typeless_grpc.cli.models import fetch
        from typeless_grpc.config import load
        from typeless_grpc.errors import InvalidInput
        from typeless_grpc.telemetry import logs

        settings = load(flags, file=config).settings
        if not settings.max_concurrent_jobs:
            raise InvalidInput("max_concurrent_jobs", "is 0: this worker would do nothing", reason="CONFIG_INVALID")
        logs.configure(settings.log_level, settings.log_format)
        fetch(catalog(settings), settings.model)
        asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    from typeless_grpc.app.starting import build_worker

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)  # asked twice
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with build_worker(settings):
        print(f"typeless worker runs up to {settings.max_concurrent_jobs} jobs", flush=True)  # noqa: T201
        await stop.wait()
        print("Stopping: running jobs are handed back.", file=sys.stderr, flush=True)  # noqa: T201
