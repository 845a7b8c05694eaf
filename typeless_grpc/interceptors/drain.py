"""Knows which calls are running, and refuses new ones once the server is on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from typeless_grpc.errors import Overloaded
from typeless_grpc.interceptors.seam import Call, Interceptor

# Health and reflection: open for as long as the server is, and nobody's work.
INFRASTRUCTURE = "/grpc."


class DrainInterceptor(Interceptor):
    """Counts the calls that do work, from their arrival until their answer is on the wire."""

    def __init__(self, *, decide_themselves: Collection[str] = ()) -> None:
        """decide_themselves: methods that are let in by a closed door, and refuse there what is new themselves."""
        self._decide_themselves = frozenset(decide_themselves)
        self._closing: list[Callable[[], None]] = []
        self._unsettled: list[Callable[[], Awaitable[None]]] = []
        self._n_running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.method.startswith(INFRASTRUCTURE):
            yield
            return
        if self._draining and call.method not in self._decide_themselves:
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

    def when_closing(self, tell: Callable[[], None], settled: Callable[[], Awaitable[None]]) -> None:
        """Have `tell` called once, when the door closes: for calls that would not end by themselves.

        settled: waits until no caller has to come back for what it left here.
        """
        self._closing.append(tell)
        self._unsettled.append(settled)

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()

    async def settled(self) -> None:
        """Wait until no call runs, and no caller has to come back."""
        await self.idle()
        for settled in self._unsettled:
            await settled()
        if not self._idle.is_set():  # somebody came back
            await self.settled()
