"""One of several processes that take calls on the same port (`front_processes`): a whole server of its own.

The process that started it holds its standard input open: a line asks for a reload, and the end for a drain. The front
writes to its standard output: first a line of JSON when it serves, then an empty line every few seconds. A front that
writes nothing hangs.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from typeless_grpc.app.cores import shares, usable_cores
from typeless_grpc.errors import FieldViolation, InvalidInput

if TYPE_CHECKING:  # cores are chosen before libraries count them
    from typeless_grpc.config import Loaded, Settings

VARIABLE = "_TYPELESS_FRONT"  # only for the processes that a server starts itself
HEARTBEAT_S = 5.0
RELOAD = b"reload\n"

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Front:
    """Identifies this process among the fronts.

    index: from 0. n: the number of fronts. port: the common port. parent: the id of the process that started it.
    """

    index: int
    n: int
    port: int
    parent: int

    @classmethod
    def of_this_process(cls) -> Front | None:
        """Return the front in the variable, None without it. Remove the variable, so that no other program finds it."""
        given = os.environ.pop(VARIABLE, None)
        return cls(**json.loads(given)) if given else None

    def environment(self) -> Mapping[str, str]:
        """Return the variable for this front."""
        return {VARIABLE: json.dumps(asdict(self))}

    def settings(self, settings: Settings) -> Settings:
        """Return the settings of this front.

        Its metrics have a port of their own. Jobs are divided, so that all fronts run as many as one server. The first
        front has the console.
        """
        n_jobs = settings.max_concurrent_jobs
        update: dict[str, object] = {
            "port": self.port,
            "max_concurrent_jobs": n_jobs // self.n + (self.index < n_jobs % self.n),
        }
        if settings.metrics_port:
            update["metrics_port"] = settings.metrics_port + self.index
        if self.index:
            update["console_port"] = None
        return settings.model_copy(update=update)

    def loaded(self, loaded: Loaded) -> Loaded:
        """Return reloaded settings as this front uses them."""
        from typeless_grpc.config import Loaded

        return Loaded(self.settings(loaded.settings), loaded.origins, loaded.warnings if not self.index else ())

    def take_cores(self, settings: Settings) -> None:
        """Pin this process to its share of the cores, unless other processes decode."""
        if not settings.engine_address and sys.platform == "linux":
            cores = shares(usable_cores(), self.n)[self.index]
            with suppress(OSError):  # the cores of a container can change
                os.sched_setaffinity(0, cores)

    def end_with_parent(self) -> None:
        """Make the kernel kill this process when its parent ends, and leave signals to the parent."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:
                os._exit(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def check(settings: Settings) -> None:
    """Raise InvalidInput if several processes cannot share one port with these settings."""
    wrong = []
    if sys.platform != "linux":
        wrong.append("only Linux divides the connections of a port between processes")
    if settings.rate_limit_enabled and not settings.redis_url.get_secret_value():
        wrong.append("the processes share limits in Redis: set redis_url, or turn rate_limit_enabled off")
    if settings.stream_store == "none":
        wrong.append("a stream can resume in another process only with stream_store = database")
    if wrong:
        violations = [FieldViolation("front_processes", why) for why in wrong]
        raise InvalidInput.of(violations, reason="CONFIG_INVALID")


@dataclass
class Requests:
    """What the process that started this front requests. stop: to drain and end. reload: cleared by the reader."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def attached() -> AsyncIterator[Requests]:
    """Follow the standard input, and show on the standard output that the event loop runs."""
    requests, reader = Requests(), asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = [asyncio.create_task(_follow(reader, requests)), asyncio.create_task(_send_heartbeats())]
    try:
        yield requests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        transport.close()


def report_serving(text: str) -> None:
    """Report to the parent process that this front serves. text: for people."""
    _write(json.dumps(text).encode() + b"\n")


async def _follow(reader: asyncio.StreamReader, requests: Requests) -> None:
    while line := await reader.readline():
        if line == RELOAD:
            requests.reload.set()
    requests.stop.set()


async def _send_heartbeats() -> None:
    while True:
        _write(b"\n")
        await asyncio.sleep(HEARTBEAT_S)


def _write(line: bytes) -> None:
    with suppress(OSError):  # the other process ends, and so will this one
        os.write(1, line)
