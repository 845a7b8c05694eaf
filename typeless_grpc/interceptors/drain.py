"""Counts running calls, and refuses new ones once the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from typeless_grpc.errors import Overloaded
from typeless_grpc.interceptors.seam import Call, Interceptor

# Calls of health and reflection stay open as long as their clients like, so a drain does not wait for them.
INFRASTRUCTURE = "/grpc."


class DrainInterceptor(Interceptor):
    """Counts the calls that do work, from their arrival until their answer is on the wire."""

    def __init__(self, *, decide_themselves: Collection[str] = ()) -> None:
        """decide_themselves: methods whose calls are admitted during a drain, and which refuse new work themselves."""
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
            raise Overloaded("This server is about to stop; another replica may serve.", reason="DRAINING")
        self._n_running += 1
        self._idle.clear()
        # Not when the handler returns: a long answer may not have been sent completely by then.
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
            for on_close in self._closing:
                on_close()

    def when_closing(self, on_close: Callable[[], None], settled: Callable[[], Awaitable[None]]) -> None:
        """Call `on_close` once, when the drain begins, to end calls that would not end by themselves.

        settled: waits until no session waits for its caller to resume it.
        """
        self._closing.append(on_close)
        self._unsettled.append(settled)

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()

    async def settled(self) -> None:
        """Wait until no call runs, and no session waits to be resumed."""
        await self.idle()
        for settled in self._unsettled:
            await settled()
        if not self._idle.is_set():  # a caller has resumed its session
            await self.settled()
