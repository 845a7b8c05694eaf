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

from typeless_grpc.app import starting
from typeless_grpc.cli import commands, serve
from typeless_grpc.config import Settings
from typeless_grpc.errors import EngineFailed


class Loading:
    """An app whose model loads for ever, or fails to; it gets a signal to stop meanwhile."""

    def __init__(self, number: signal.Signals | None, *, is_early: bool = False) -> None:
        """is_early: the signal comes before the rest of the program is loaded."""
        self.number = number
        self.is_early = is_early
        self.is_begun = False
        self.is_closed = False

    @asynccontextmanager
    async def build(self, _settings: Settings) -> AsyncIterator[Loading]:
        if self.is_early and self.number is not None:
            signal.raise_signal(self.number)
            for _ in range(5):  # a pipe wakes the loop
                await asyncio.sleep(0)
        try:
            yield self
        finally:
            self.is_closed = True

    async def warm(self) -> None:
        self.is_begun = True
        if self.number is None:
            raise EngineFailed("It has no weights.", reason="MODEL_BROKEN")
        if not self.is_early:
            signal.raise_signal(self.number)
        await asyncio.Event().wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_while_the_model_loads_stops_the_server(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    app = Loading(number)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve._serve(Settings(), ""), 5)
    assert app.is_closed
    assert capsys.readouterr().out == ""


async def test_a_signal_before_the_start_keeps_the_server_from_starting(monkeypatch: pytest.MonkeyPatch):
    app = Loading(signal.SIGTERM, is_early=True)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve._serve(Settings(), ""), 5)
    assert (app.is_closed, app.is_begun) == (True, False)


async def test_a_model_that_cannot_be_loaded_ends_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starting, "build", Loading(None).build)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(serve._serve(Settings(), ""), 5)


def test_the_key_that_it_says_to_make_goes_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings_file, data_dir = tmp_path / "my settings.toml", tmp_path / "my data"
    settings_file.write_text("max_api_keys = 1", "utf-8")
    printed: list[str] = []

    async def no_server(settings: Settings, variables: str) -> None:
        engine = SimpleNamespace(device=SimpleNamespace(name="cuda", compute_type="float16"))
        app: Any = SimpleNamespace(port=50051, engine=engine, model="base")
        printed.append(serve.ready_text(app, settings, variables))

    monkeypatch.setattr(serve, "_serve", no_server)
    monkeypatch.setattr("typeless_grpc.cli.models.fetch", lambda *_: None)
    monkeypatch.setattr("typeless_grpc.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setenv("TYPELESS_AUTH_ENABLED", "true")
    arguments = ["serve", "--config", str(settings_file), "--data-dir", str(data_dir)]
    assert CliRunner().invoke(commands.app, arguments).exit_code == 0
    line = next(line for line in printed[0].splitlines() if "keys create" in line)
    *variables, _, keys, create, local = shlex.split(line.partition("$(")[2].removesuffix(")"))
    made = CliRunner().invoke(
        commands.app, [keys, create, local], env=dict(variable.split("=", 1) for variable in variables)
    )
    assert made.exit_code == 0, made.output
    assert (data_dir / "access.sqlite3").is_file()
    assert "TYPELESS_CONFIG" in line
