"""A way to a server that a test can cut: TCP in, TCP out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """A way to a server that can be cut: TCP in, TCP out, and resets on demand."""

    def __init__(self, target: str, *, delay_s: float = 0.0) -> None:
        """delay_s: from a caller's connection to that to the server."""
        self.send_to(target)
        self._delay_s = delay_s
        self.answer_delay_s = 0.0  # before each answer, from now on
        self._writers: set[asyncio.StreamWriter] = set()
        self.target = ""
        self.n_connections = 0

    def send_to(self, target: str) -> None:
        """Where the next connections go."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        await asyncio.sleep(self._delay_s)
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, up_writer}
        with contextlib.suppress(OSError, asyncio.CancelledError):
            requested = asyncio.Event()
            await asyncio.gather(
                self._carry(reader, up_writer, requested),
                self._carry(up_reader, writer, requested, is_answer=True),
            )
        for one in (writer, up_writer):
            one.transport.abort()
            self._writers.discard(one)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        requested: asyncio.Event,
        *,
        is_answer: bool = False,
    ) -> None:
        while data := await reader.read(65_536):
            if not is_answer:
                requested.set()
            elif requested.is_set():
                requested.clear()
                await asyncio.sleep(self.answer_delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Reset every connection (RST), whatever is under way in it."""
        for writer in list(self._writers):
            connection = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is closed
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@asynccontextmanager
async def proxied(target: str, *, delay_s: float = 0.0) -> AsyncIterator[Proxy]:
    """Run a `Proxy`. See its constructor for the arguments."""
    proxy = Proxy(target, delay_s=delay_s)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await server.wait_closed()
