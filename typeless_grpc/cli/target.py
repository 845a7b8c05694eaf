"""The server that a command calls, a running one or its own; and how long the command retries."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import typer

from typeless_grpc.cli.connection import Connection
from typeless_grpc.cli.failures import fail_with, is_unavailable
from typeless_grpc.cli.flags import Model
from typeless_grpc.cli.output import complain, errors, working
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.client import AsyncClient, CallFailed, RetryPolicy
from typeless_grpc.client.retry import RetryState, is_quota

# Many files need more calls than most quotas allow at once, so a command waits for its quota without a limit.
RETRIES = RetryPolicy(max_attempts=6, first_delay_s=0.5, max_delay_s=8.0, max_quota_attempts=None, max_quota_s=math.inf)

# Room in a message for names and options.
OVERHEAD_BYTES = 64 * 1024

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Target(Connection):
    """The server to call and the model to use. With --local, the command starts a server and stops it at the end."""

    local: Annotated[bool, typer.Option("--local", help="Start a server just for this command.")] = False
    model: Model = ""

    def check(self, given: Mapping[str, str]) -> None:
        """Refuse a connection that is invalid or unused. given: see `options`. Raises typer.BadParameter."""
        if self.local:
            self.refuse(given, "starts its own server")
        else:
            super().check(given)

    @property
    def requested_model(self) -> str:
        """The model to name in calls; "" with --local, where the server itself starts with it."""
        return "" if self.local else self.model


@asynccontextmanager
async def open_client(target: Target) -> AsyncIterator[AsyncClient]:
    """Open a client of the server."""
    if not target.local:
        # `retry_until_available` retries, and shows that to the user.
        async with AsyncClient(target.server, api_key=target.api_key, tls=target.tls, retry=False) as client:
            yield client
        return
    from typeless_grpc.app.models import catalog
    from typeless_grpc.app.starting import build
    from typeless_grpc.cli.models import fetch
    from typeless_grpc.config import private
    from typeless_grpc.telemetry import logs

    settings = private(load_settings({"host": "127.0.0.1", "port": 0, "model": target.model or None}).settings)
    logs.configure("warning", settings.log_format)
    fetch(catalog(settings), settings.model)
    async with build(settings) as app:
        with working(f"Loading model {app.model}"):
            await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}", api_key="", retry=False) as client:
            yield client


async def retry_until_available(call: Callable[[], Awaitable[Answer]], target: Target, what: str) -> Answer:
    """Repeat a call while a quota or the server's load delays it.

    what: names the call in messages. Raises CallFailed if waiting does not help. Ends the command if no server answers.
    """
    retries = RetryState(RETRIES)
    while True:
        try:
            return await call()
        except CallFailed as error:
            if is_unavailable(error):
                fail_with(error, target.server)
            if error.retry_after_s is None:
                raise
            wait_s = retries.wait_s(error)
            if wait_s >= 1 or errors.is_terminal:
                reason = "your quota" if is_quota(error) else "the server"
                complain(f"{what}: waiting {wait_s:.0f} s for {reason}", style="dim")
            await asyncio.sleep(wait_s)


async def max_audio_bytes(client: AsyncClient, target: Target) -> int:
    """Return the most audio that a call may contain, in bytes; 0 if the server does not answer."""
    try:
        info = await retry_until_available(client.server_info, target, "the server's limits")
    except CallFailed:
        return 0
    return info.max_message_bytes - OVERHEAD_BYTES
