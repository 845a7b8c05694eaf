"""`typeless engine`: decodes for servers on other machines."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from typeless_grpc.cli.output import failures_as_lines
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.cli.signals import requests, say

if TYPE_CHECKING:
    from typeless_grpc.config import Loaded, Settings


def engine(
    listen: Annotated[str | None, typer.Option(help="Address to listen on: HOST:PORT.")] = None,
    model: Annotated[str | None, typer.Option(help="Default model: a name or a directory; base by default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    compute_type: Annotated[str | None, typer.Option(help="auto, int8, float16, …")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory for models.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Decode for servers on other machines until SIGTERM or Ctrl-C.

    Their TYPELESS_ENGINE_ADDRESS names this engine. Other machines need the key in TYPELESS_ENGINE_KEY.

    Example: typeless engine --listen 127.0.0.1:50052
    """
    flags = {
        "engine_listen": listen,
        "model": model,
        "device": device,
        "compute_type": compute_type,
        "data_dir": data_dir,
        "log_level": log_level,
    }
    with failures_as_lines():
        from typeless_grpc.app.models import catalog
        from typeless_grpc.cli.models import fetch
        from typeless_grpc.config import load
        from typeless_grpc.telemetry import logs

        settings = load_settings(flags, file=config).settings
        logs.configure(settings.log_level, settings.log_format)
        fetch(catalog(settings), settings.model)
        asyncio.run(run_engine(settings, functools.partial(load, flags, file=config)))


async def run_engine(settings: Settings, reading: Callable[[], Loaded]) -> None:
    """Serve until a signal. reading: reads the settings again."""
    from typeless_grpc.app.engine_server import serve_address
    from typeless_grpc.app.memory import freeze_heap
    from typeless_grpc.app.reloading import Reloads, follow_logs

    signals, reloads = requests(), Reloads(settings)
    follow_logs(reloads)
    async with serve_address(reloads) as server, reloads.running(signals.reload, reading):
        stopping = asyncio.create_task(signals.stop.wait())
        await asyncio.wait({server.warming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not signals.stop.is_set():
            await server.warming
            freeze_heap()
            address = f"{(settings.engine_listen or '').rpartition(':')[0]}:{server.port}"
            say(f"typeless engine decodes on {address}: model {settings.model} ({server.runs_on})")
        await stopping
        say("Stopping: running calls may finish.", to_stderr=True)
