from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.idle import until_idle
from typeless_grpc.app import starting
from typeless_grpc.cli import commands, serve
from typeless_grpc.config import Settings, load
from typeless_grpc.errors import EngineFailed


class Loading:
    """An app whose model loads for ever, or fails to load; a signal arrives meanwhile."""

    def __init__(self, number: signal.Signals | None, *, is_early: bool = False) -> None:
        """is_early: the signal arrives before the app is built."""
        self.number = number
        self.is_early = is_early
        self.is_started = False
        self.is_closed = False

    @asynccontextmanager
    async def build(self, _settings: Settings) -> AsyncIterator[Loading]:
        if self.is_early and self.number is not None:
            signal.raise_signal(self.number)
            for _ in range(2):  # the loop gets a signal through a pipe, and then calls its handler
                await until_idle()
        try:
            yield self
        finally:
            self.is_closed = True

    async def warm(self) -> None:
        self.is_started = True
        if self.number is None:
            raise EngineFailed("It has no weights.", reason="MODEL_BROKEN")
        if not self.is_early:
            signal.raise_signal(self.number)
        await asyncio.Event().wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_the_model_loads_stops_the_server(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    app = Loading(number)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve.run_server(Settings(), "", load), 30)
    assert app.is_closed
    assert capsys.readouterr().out == ""


async def test_a_signal_before_that_prevents_the_start(monkeypatch: pytest.MonkeyPatch):
    app = Loading(signal.SIGTERM, is_early=True)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve.run_server(Settings(), "", load), 30)
    assert (app.is_closed, app.is_started) == (True, False)


async def test_a_model_that_cannot_be_loaded_ends_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starting, "build", Loading(None).build)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(serve.run_server(Settings(), "", load), 30)


async def test_a_server_that_grpc_ends_by_itself_ends_the_process():
    async def failed() -> None:
        raise UnicodeError("a bug of gRPC")

    with pytest.raises(UnicodeError):
        await serve.until_stopped(asyncio.Event(), failed())


async def test_a_signal_stops_a_server_that_has_not_failed():
    stop, never = asyncio.Event(), asyncio.Event()

    async def failed() -> None:
        await never.wait()

    waiting = asyncio.create_task(serve.until_stopped(stop, failed()))
    await until_idle()
    assert not waiting.done()
    stop.set()
    await waiting


def test_the_printed_command_creates_a_key_in_the_servers_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings_file, data_dir = tmp_path / "my settings.toml", tmp_path / "my data"
    settings_file.write_text("max_api_keys = 1", "utf-8")
    texts: list[str] = []

    async def no_server(settings: Settings, variables: str, reading: object) -> None:
        engine = SimpleNamespace(runs_on=lambda: "cuda, float16")
        app: Any = SimpleNamespace(port=50051, console_port=None, engine=engine, model="base")
        texts.append(serve.ready_text(app, settings, variables))

    monkeypatch.setattr(serve, "run_server", no_server)
    monkeypatch.setattr("typeless_grpc.cli.models.fetch", lambda *_: None)
    monkeypatch.setattr("typeless_grpc.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setenv("TYPELESS_AUTH_ENABLED", "true")
    arguments = ["serve", "--port", "0", "--config", str(settings_file), "--data-dir", str(data_dir)]
    assert CliRunner().invoke(commands.app, arguments).exit_code == 0
    line = next(line for line in texts[0].splitlines() if "keys create" in line)
    *variables, _, keys, create, local = shlex.split(line.partition("$(")[2].removesuffix(")"))
    made = CliRunner().invoke(
        commands.app, [keys, create, local], env=dict(variable.split("=", 1) for variable in variables)
    )
    assert made.exit_code == 0, made.output
    assert (data_dir / "access.sqlite3").is_file()
    assert "TYPELESS_CONFIG" in line


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://localhost:8080/"),
        ("0.0.0.0", "http://localhost:8080/"),
        ("[::1]", "http://localhost:8080/"),
        ("192.0.2.1", "http://192.0.2.1:8080/"),
        ("2001:db8::1", "http://[2001:db8::1]:8080/"),
    ],
)
def test_the_address_of_the_console_is_printed(host: str, address: str):
    engine = SimpleNamespace(runs_on=lambda: "cuda, float16")
    app: Any = SimpleNamespace(port=50051, console_port=8080, engine=engine, model="base")
    assert f"The console: {address}\n" in serve.ready_text(app, Settings(console_host=host, console_port=8080))
    app.console_port = None
    assert "console" not in serve.ready_text(app, Settings())
