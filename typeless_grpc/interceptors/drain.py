"""Knows which calls are running, and refuses new ones once the server is on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from typeless_grpc.errors import Overloaded
from typeless_grpc.interceptors.seam import Call, Interceptor

# Health and reflection: open for as long as the server is, and nobody's work.
INFRASTRUCTURE = "/grpc."


class DrainInterceptor(Interceptor):
    """Counts the calls that do work, from their arrival until their answer is on the wire."""

    def __init__(self) -> None:
        self._closing: list[Callable[[], None]] = []
        self._n_running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.method.startswith(INFRASTRUCTURE):
            yield
            return
        if self._draining:
            raise Overloaded("This server is going away; another replica may serve.", reason="DRAINING")
        self._n_running += 1
        self._idle.clear()
        # Not when the handler returns: a long answer is still to be sent then, and would be cut.
        call.context.add_done_callback(self._ended)  # type: ignore[arg-type]  # its stub wants a class of its own
        yield

    def _ended(self, _context: object) -> None:
        self._n_running -= 1
        if not self._n_running:
            self._idle.set()

    def close(self) -> None:
        """Refuse every call from now on."""
        if not self._draining:
            self._draining = True
            for tell in self._closing:
                tell()

    def when_closing(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once, when the door closes: for calls that would not end by themselves."""
        self._closing.append(tell)

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()
