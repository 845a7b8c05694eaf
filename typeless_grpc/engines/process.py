"""Keeps the process of an engine running: starts it, kills it when it hangs, starts it again, and ends it.

The process reads its settings from its standard input, which stays open: when it ends, the front has ended, and the
process ends too (`app/engine_process.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from typeless_grpc.clock import Clock
from typeless_grpc.engines.connection import DISCONNECTED
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a short life; the last one repeats
MAX_READY_RESTART_S = 2.0  # before a start after a life in which the engine was ready: calls wait, and one is the cause
LONG_LIFE_S = 60.0  # a process that ran so long is started again at once
MAX_START_S = 900.0  # until an engine is ready: the first start may calibrate a large model
MAX_RECONNECT_S = 30.0  # until a process whose connection broke is ready again
STOP_S = 5.0  # for an engine to end by itself


@dataclass(frozen=True)
class ProcessOptions:
    """What to start. environment: in addition to this process's. descriptors: files that it inherits."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()


class EngineProcess:
    """The process of one engine. Belongs to one event loop; `run` keeps it running."""

    def __init__(
        self,
        name: str,
        options: ProcessOptions,
        settings: str,
        clock: Clock,
        on_restart: Callable[[str, str], None],
    ) -> None:
        """settings: a line for its standard input.

        on_restart: called with the name and the reason: "exited", "silent", "stalled" or "not ready".
        """
        self.name = name
        self._options = options
        self._settings = settings
        self._clock = clock
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._is_ready = self._was_ready = False
        self._reason = ""
        self.failed_to_start: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        """The id of the process; None while it is not running."""
        return self._process.pid if self._process else None

    def apply(self, settings: str) -> None:
        """Give new settings to the process, and to those that follow it."""
        self._settings = settings
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(settings.encode() + b"\n")

    def ready(self) -> None:
        """Note that the engine is ready."""
        self._is_ready = self._was_ready = True

    def lost(self, reason: str) -> None:
        """Kill a process that hangs; it is started again. reason: as in `RemoteEngine.on_lost`.

        A process that only broke its connection has usually ended. Else it has a moment to be reached again.
        """
        if reason == DISCONNECTED:
            self._is_ready = False
            asyncio.get_running_loop().call_later(MAX_RECONNECT_S, self._check_is_ready, self._process)
        else:
            self._kill(reason)

    def _kill(self, reason: str) -> None:
        if self._process is not None and self._process.returncode is None:
            self._reason = self._reason or reason
            with suppress(ProcessLookupError):
                self._process.kill()

    async def run(self) -> None:
        """Keep the process running, until cancelled; then end it."""
        n_short = 0
        while True:
            began_s = self._clock.now_s()
            status = await self._live()
            lived_s = self._clock.now_s() - began_s
            if not self._was_ready and not self.failed_to_start.done():
                self.failed_to_start.set_result(status)
            reason, self._reason = self._reason or "exited", ""
            n_short = 0 if lived_s > LONG_LIFE_S else n_short + 1
            pause_s = RESTART_S[min(max(0, n_short - 1), len(RESTART_S) - 1)]
            if self._was_ready:
                pause_s = min(pause_s, MAX_READY_RESTART_S)
            log.error(
                "engine process ended; it is started again",
                engine=self.name,
                reason=reason,
                exit_status=status,
                lived_s=round(lived_s, 1),
                pause_s=pause_s,
            )
            self._on_restart(self.name, reason)
            await asyncio.sleep(pause_s)

    async def _live(self) -> int:
        """Start the process, and return its exit status when it has ended."""
        self._is_ready = self._was_ready = False
        self._process = process = await asyncio.create_subprocess_exec(
            *self._options.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, **self._options.environment},
            pass_fds=self._options.descriptors,
            start_new_session=True,  # Ctrl-C is for the front, which ends its engines when their calls are done
        )
        assert process.stdin is not None
        late = asyncio.get_running_loop().call_later(MAX_START_S, self._check_is_ready, process)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(self._settings.encode() + b"\n")
                await process.stdin.drain()
            log.info("engine process started", engine=self.name, pid=process.pid)
            return await process.wait()
        finally:
            late.cancel()
            await asyncio.shield(_end(process))

    def _check_is_ready(self, process: asyncio.subprocess.Process | None) -> None:
        if process is self._process and not self._is_ready:
            self._kill("not ready")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait until a process ends by itself; kill it if it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
