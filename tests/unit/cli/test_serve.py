from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from typeless_grpc.app import starting
from typeless_grpc.cli import serve
from typeless_grpc.config import Settings
from typeless_grpc.errors import EngineFailed


class Loading:
    """An app whose model loads for ever, or fails to; it is told to stop meanwhile."""

    def __init__(self, number: signal.Signals | None, *, is_early: bool = False) -> None:
        """is_early: told before the rest of the program is there."""
        self.number = number
        self.is_early = is_early
        self.is_begun = False
        self.is_closed = False

    @asynccontextmanager
    async def build(self, _settings: Settings) -> AsyncIterator[Loading]:
        if self.is_early and self.number is not None:
            signal.raise_signal(self.number)
            for _ in range(5):  # the loop hears of it by a pipe
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_told_to_stop_while_its_model_loads_stops_then(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    app = Loading(number)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve._serve(Settings()), 5)
    assert app.is_closed
    assert capsys.readouterr().out == ""


async def test_a_server_told_to_stop_before_that_does_not_begin(monkeypatch: pytest.MonkeyPatch):
    app = Loading(signal.SIGTERM, is_early=True)
    monkeypatch.setattr(starting, "build", app.build)
    await asyncio.wait_for(serve._serve(Settings()), 5)
    assert (app.is_closed, app.is_begun) == (True, False)


async def test_a_model_that_cannot_be_loaded_ends_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starting, "build", Loading(None).build)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(serve._serve(Settings()), 5)
