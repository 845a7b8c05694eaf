"""Keeps the processes running that take calls on one port: starts them, and starts those again that end or hang."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from typeless_grpc.access.listening import cannot_listen, why_unusable
from typeless_grpc.app.front_process import HEARTBEAT_S, RELOAD, Front, check
from typeless_grpc.config import Settings
from typeless_grpc.errors import EngineFailed
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a short life; the last one repeats
LONG_LIFE_S = 60.0  # a front that ran so long is started again at once
SILENT_S = 12 * HEARTBEAT_S  # silence after which a front counts as hanging
MAX_START_S = 900.0  # until a front serves: a first start may measure a large model


class FrontProcess:
    """The process of one front; `run` keeps it running."""

    def __init__(self, front: Front, command: Sequence[str], *, silent_s: float = SILENT_S) -> None:
        self.front = front
        self._command = command
        self._silent_s = silent_s
        self._process: asyncio.subprocess.Process | None = None
        self.serves: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        """The id of the process; None while it is not running."""
        return self._process.pid if self._process else None

    def reload(self) -> None:
        """Make it read its settings again."""
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(RELOAD)

    async def run(self) -> None:
        """Keep the process running until cancelled; then let it drain. Raises EngineFailed if it never serves."""
        n_short = 0
        while True:
            began_s = time.monotonic()
            reason, status = await self._live()
            lived_s = time.monotonic() - began_s
            if not self.serves.done():
                why = (
                    f"Front process {self.front.index} ended before it served ({reason}, status {status}); see its log."
                )
                raise EngineFailed(why, reason="FRONT_NOT_STARTED")
            n_short = 0 if lived_s > LONG_LIFE_S else n_short + 1
            pause_s = RESTART_S[min(max(0, n_short - 1), len(RESTART_S) - 1)]
            log.error(
                "front process ended; it is started again",
                front=self.front.index,
                reason=reason,
                exit_status=status,
                lived_s=round(lived_s, 1),
                pause_s=pause_s,
            )
            await asyncio.sleep(pause_s)

    async def _live(self) -> tuple[str, int]:
        """Start the process; return why it ended, "exited", "silent" or "not ready", and its exit status."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **self.front.environment()},
            start_new_session=True,  # a terminal signals the process that started it, which then ends it
        )
        log.info("front process started", front=self.front.index, pid=process.pid)
        watching = asyncio.create_task(self._watch(process))
        try:
            reason = await asyncio.shield(watching)
        except asyncio.CancelledError:
            assert process.stdin is not None
            process.stdin.close()  # it drains within its own bounds, or is killed when it falls silent
            await watching
            await process.wait()
            raise
        return reason, await process.wait()

    async def _watch(self, process: asyncio.subprocess.Process) -> str:
        """Read what the process writes until it ends, and kill it if it hangs. Returns the reason of its end."""
        assert process.stdout is not None
        ready_by_s, is_serving = time.monotonic() + MAX_START_S, False
        silent_s = MAX_START_S  # nothing is written while the program is imported
        while True:
            try:
                async with asyncio.timeout(silent_s):
                    line = await process.stdout.readline()
            except TimeoutError:
                return _killed(process, "silent")
            if not line:
                return "exited"
            silent_s = self._silent_s
            if (text := _text(line)) is not None:
                is_serving = True
                if not self.serves.done():
                    self.serves.set_result(text)
            elif not is_serving and time.monotonic() > ready_by_s:
                return _killed(process, "not ready")


def _text(line: bytes) -> str | None:
    """Return the text that a front writes when it serves; None for a heartbeat, and for what a library may print."""
    try:
        text = json.loads(line)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def _killed(process: asyncio.subprocess.Process, reason: str) -> str:
    with suppress(ProcessLookupError):
        process.kill()
    return reason


class Fronts:
    """All fronts of one port."""

    def __init__(self, processes: Sequence[FrontProcess]) -> None:
        self.processes = processes
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, serving: Callable[[str], None]) -> None:
        """Keep all fronts running until cancelled; then let them drain. Raises EngineFailed if one never serves.

        The first one serves before the others start, so that only one process creates tables and reports wrong
        settings. serving: called with the first one's text when all serve.
        """
        try:
            for some in (self.processes[:1], self.processes[1:]):
                self._tasks += [asyncio.create_task(one.run(), name="front") for one in some]
                served = asyncio.gather(*(one.serves for one in some))
                waiting: set[asyncio.Future[Any]] = {served, *self._tasks}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                self._raise_if_failed()
            serving(self.processes[0].serves.result())
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_failed()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.shield(asyncio.gather(*self._tasks, return_exceptions=True))

    def reload(self) -> None:
        """Make all fronts read their settings again."""
        for process in self.processes:
            process.reload()

    def _raise_if_failed(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


@contextmanager
def fronts(settings: Settings) -> Iterator[Fronts]:
    """Take the port for the fronts of these settings, which run the command of this process.

    Raises InvalidInput if fronts cannot share a port with these settings, SourceUnavailable if the address cannot be
    used.
    """
    check(settings)
    with reserved(settings.host, settings.port) as port:
        command = [sys.executable, *sys.orig_argv[1:]]
        n = settings.front_processes
        yield Fronts([FrontProcess(Front(index, n, port, os.getpid()), command) for index in range(n)])


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Hold a port for processes that share it, and against all others; 0 takes a free one.

    Raises SourceUnavailable if the address cannot be used, or another program listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:  # without the option: it fails if any other has the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            address = probe.getsockname()
        holder = socket.socket(family, kind, protocol)
    except OSError as error:
        raise cannot_listen(f"{host}:{port}", why_unusable(host, port)) from error
    with holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)  # it never listens, so it gets no connections
        yield int(address[1])
