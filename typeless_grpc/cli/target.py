"""Which server a command calls: one that runs somewhere, or one of its own; and how patient it is with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import grpc
import typer

from typeless_grpc.cli.connection import Connection
from typeless_grpc.cli.failures import fail_with, is_away
from typeless_grpc.cli.flags import Model
from typeless_grpc.cli.output import errors, working
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.client import AsyncClient, CallFailed

# How often a call is made that the server refuses for load; it says itself how long to wait.
ATTEMPTS = 6

# Room in a message for what is not audio: names, options.
ROOM_BYTES = 64 * 1024

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Place(Connection):
    """Where to call, and how: the server named, or one of our own with this model that ends with the command."""

    local: Annotated[bool, typer.Option("--local", help="Start a server for this command alone.")] = False
    model: Model = ""

    def check(self, given: Mapping[str, str]) -> None:
        """Refuse a connection that would not be used, or cannot be. given: see `options`. Raises typer.BadParameter."""
        if self.local:
            self.refuse(given, "calls a server of its own")
        else:
            super().check(given)

    @property
    def asked_model(self) -> str:
        """The model to name in calls: a server of our own is started with it, as it may be a directory."""
        return "" if self.local else self.model


@asynccontextmanager
async def client_of(place: Place) -> AsyncIterator[AsyncClient]:
    """A client of the server that is meant."""
    if not place.local:
        # Commands wait by themselves and say so: see `patiently`.
        async with AsyncClient(place.server, api_key=place.api_key, tls=place.tls, retry=False) as client:
            yield client
        return
    from typeless_grpc.app.models import catalog
    from typeless_grpc.app.starting import build
    from typeless_grpc.cli.models import fetch
    from typeless_grpc.config import private
    from typeless_grpc.telemetry import logs

    settings = private(load_settings({"host": "127.0.0.1", "port": 0, "model": place.model or None}).settings)
    logs.configure("warning", settings.log_format)
    fetch(catalog(settings), settings.model)
    async with build(settings) as app:
        with working(f"Loading model {app.model}"):
            await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}", api_key="", retry=False) as client:
            yield client


async def patiently(call: Callable[[], Awaitable[Answer]], place: Place, what: str) -> Answer:
    """What the server answers once our quota and its load let it: many files are more than most quotas hold at once.

    Raises CallFailed where waiting does not help, or did not. Stops the command where no server answers at all.
    """
    n_refused = 0
    while True:
        try:
            return await call()
        except CallFailed as error:
            if is_away(error):
                fail_with(error, place.server)
            is_quota = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            n_refused += 0 if is_quota else 1
            if error.retry_after_s is None or n_refused == ATTEMPTS:
                raise
            why = "our quota" if is_quota else "the server"
            if errors.is_terminal:
                errors.print(f"{what}: waiting {error.retry_after_s:.0f} s for {why}", style="dim", markup=False)
            await asyncio.sleep(error.retry_after_s * max(1, n_refused))


async def max_audio_bytes(client: AsyncClient, place: Place) -> int:
    """What the audio of one call may have; 0 where the server does not say: it will, if a call is too large."""
    try:
        return (await patiently(client.server_info, place, "the server's limits")).max_message_bytes - ROOM_BYTES
    except CallFailed:
        return 0
