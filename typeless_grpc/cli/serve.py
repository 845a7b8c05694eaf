"""`typeless serve`: runs a server until a signal."""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from typeless_grpc.access.address import is_loopback
from typeless_grpc.access.listening import check_free
from typeless_grpc.app.front_process import Front
from typeless_grpc.app.memory import freeze_heap
from typeless_grpc.cli.output import failures_as_lines
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.cli.signals import hold_hang_ups, requests, say
from typeless_grpc.version import VERSION

if TYPE_CHECKING:
    from typeless_grpc.app.starting import App
    from typeless_grpc.config import Loaded, Settings

SAMPLE = Path(__file__).parents[2] / "tests" / "audio" / "en_two_sentences.flac"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 50051 by default, 0 for any free port.")] = None,
    model: Annotated[str | None, typer.Option(help="Default model: a name or a directory; base by default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    compute_type: Annotated[str | None, typer.Option(help="auto, int8, float16, …")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory for models and all other data.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running calls. SIGHUP reads the settings again.

    `typeless config` shows all settings.

    Example: typeless serve --port 50051 --model base
    """
    flags = {
        "host": host,
        "port": port,
        "model": model,
        "device": device,
        "compute_type": compute_type,
        "data_dir": data_dir,
        "log_level": log_level,
    }
    front = Front.of_this_process()
    if front is None:
        hold_hang_ups()
    else:
        front.end_with_parent()
    with failures_as_lines():
        from typeless_grpc.config import load

        # Its parent has printed the warnings.
        settings = (load_settings(flags, file=config) if front is None else load(flags, file=config)).settings
        if front is not None:
            front.take_cores(settings)
        from typeless_grpc.app.models import catalog
        from typeless_grpc.cli.models import fetch
        from typeless_grpc.cli.open_files import allow_open_files
        from typeless_grpc.telemetry import logs

        logs.configure(settings.log_level, settings.log_format)
        allow_open_files(settings.max_connections)
        if front is None:
            check_free(settings.host, settings.port)  # before a model is fetched and calibrated
        if not settings.engine_address:
            fetch(catalog(settings), settings.model)
        reading = functools.partial(load, flags, file=config)
        variables = _variables(config, data_dir)
        if front is not None:
            asyncio.run(run_front(front, settings, variables, reading))
        elif settings.front_processes > 1:
            asyncio.run(run_fronts(settings))
        else:
            asyncio.run(run_server(settings, variables, reading))


async def run_server(settings: Settings, variables: str, reading: Callable[[], Loaded]) -> None:
    """Run a server until a signal. variables: see `ready_text`. reading: reads the settings again."""
    from typeless_grpc.app.starting import build

    signals = requests()
    async with build(settings) as app:
        if await _becomes_warm(app, signals.stop):
            say(ready_text(app, settings, variables))
            async with app.reloads.running(signals.reload, reading):
                await until_stopped(signals.stop, app.server.failed())
        say("Stopping: running calls may finish.", to_stderr=True)


async def run_fronts(settings: Settings) -> None:
    """Run `front_processes` servers on one port until a signal. Each of them reads the settings itself."""
    from typeless_grpc.app.fronts import fronts

    signals = requests()
    with fronts(settings) as processes:
        running = asyncio.create_task(processes.run(say))
        stopping = asyncio.create_task(signals.stop.wait())
        reloading = asyncio.create_task(_reload_all(signals.reload, processes.reload))
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            say("Stopping: running calls may finish.", to_stderr=True)
        finally:
            reloading.cancel()
            stopping.cancel()
            running.cancel()
            await asyncio.wait({running})


async def _reload_all(requested: asyncio.Event, reload: Callable[[], None]) -> None:
    while True:
        await requested.wait()
        requested.clear()
        reload()


async def run_front(front: Front, settings: Settings, variables: str, reading: Callable[[], Loaded]) -> None:
    """Run one of several servers on a port until its parent stops it. The rest is as in `run_server`."""
    from typeless_grpc.app.front_process import attached, report_serving
    from typeless_grpc.app.starting import build

    settings = front.settings(settings)
    async with attached() as requested, build(settings) as app:
        if await _becomes_warm(app, requested.stop):
            report_serving(ready_text(app, settings, variables))
            async with app.reloads.running(requested.reload, lambda: front.loaded(reading())):
                await until_stopped(requested.stop, app.server.failed())


async def until_stopped(stop: asyncio.Event, failed: Coroutine[Any, Any, None]) -> None:
    """Wait for stop. Raises the error of `failed`: without gRPC's server, the process would run on without serving."""
    failing, stopping = asyncio.create_task(failed), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
    finally:
        failing.cancel()
        stopping.cancel()


async def _becomes_warm(app: App, stop: asyncio.Event) -> bool:
    """Wait until the model is warm. Returns False if the process has to stop first."""
    if stop.is_set():  # the signal came while the program was imported
        return False
    warming, stopping = asyncio.create_task(app.warm()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({warming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await warming
            freeze_heap()
        return not stop.is_set()
    finally:
        warming.cancel()
        stopping.cancel()


def _variables(config: Path | None, data_dir: Path | None) -> str:
    """Return these flags as variables of a shell, for commands that must find the same store."""
    given = {
        "TYPELESS_CONFIG": config and config.absolute(),
        "TYPELESS_DATA_DIR": data_dir and data_dir.expanduser().absolute(),
    }
    return "".join(f"{name}={shlex.quote(str(path))} " for name, path in given.items() if path is not None)


def ready_text(app: App, settings: Settings, variables: str = "") -> str:
    """Return the text for a new user: the address, the model, and commands that work as printed.

    variables: to put before commands that read the settings, each with a space behind it.
    """
    address = f"localhost:{app.port}"
    sample = os.path.relpath(SAMPLE) if SAMPLE.is_file() else "RECORDING"
    method = "typeless.v1.TranscriptionService/Transcribe"
    server = "" if app.port == 50051 else f" --server {address}"
    typeless = _command()
    tls, grpcurl = ("", "grpcurl -plaintext") if settings.tls_cert_file is None else (" --tls", "grpcurl")
    key = ""
    if settings.auth_enabled:
        key = f"  export TYPELESS_API_KEY=$({variables}{typeless} keys create --local)\n"
        grpcurl += ' -H "x-api-key: $TYPELESS_API_KEY"'
    console = f"The console: {_console_url(settings, app.console_port)}\n" if app.console_port is not None else ""
    return f"""\
typeless {VERSION} takes calls on {settings.host}:{app.port}: model {app.model} ({app.engine.runs_on()})
{console}
Try next:
{key}  {typeless} transcribe{server}{tls} {sample}
  {grpcurl} {address} list
  echo '{{"audio": {{"content": "'$(base64 -w0 {sample})'"}}}}' | {grpcurl} -d @ {address} {method}
"""


def _console_url(settings: Settings, port: int) -> str:
    """Return the address for a browser on this machine, if the console listens here; browsers trust localhost."""
    host = settings.console_host.strip("[]")
    if is_loopback(host) or host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _command() -> str:
    """Return the name of this command if the shell finds it, else its path."""
    here = Path(sys.argv[0]).absolute()
    if here.name != "typeless" or shutil.which("typeless") == str(here):
        return "typeless"
    return os.path.relpath(here)
