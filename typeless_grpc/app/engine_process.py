"""The process of an engine that a front has started: `python -m typeless_grpc.app.engine_process`.

The front writes a line of JSON to its standard input, and another one whenever settings have changed. The process ends
when the front closes its standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # imported later, because cores are chosen before libraries count them
    from typeless_grpc.app.engine_server import EngineServer
    from typeless_grpc.app.reloading import Reloads

Serve: TypeAlias = "Callable[[Reloads, str, int, int | None], AbstractAsyncContextManager[EngineServer]]"

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(serve: Serve | None = None) -> None:
    """Serve until the standard input ends. serve: makes the engine; that of the product unless given."""
    _end_with(os.getppid())
    # Terminals and service managers signal all processes of a server. The front decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    given = json.loads(sys.stdin.buffer.readline() or b"null")
    if given is None:
        return
    if cores := given["cores"]:
        with suppress(OSError):  # the cores of a container can change
            os.sched_setaffinity(0, cores)
    # OpenBLAS reads this when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from typeless_grpc.app.engine_server import serve_process

    asyncio.run(_run(given, serve or serve_process))


async def _run(given: dict[str, Any], serve: Serve) -> None:
    """Serve as an engine process until its standard input ends. Running batches are not waited for."""
    from typeless_grpc.app.memory import freeze_heap
    from typeless_grpc.app.reloading import Reloads, follow_logs
    from typeless_grpc.config import Settings
    from typeless_grpc.errors import TypelessError
    from typeless_grpc.telemetry import logs

    settings = Settings(**given["settings"])
    logs.configure(settings.log_level, settings.log_format)
    reloads = Reloads(settings)
    follow_logs(reloads)
    try:
        async with serve(reloads, given["socket"], given["n_cores"], given["shared"]) as server:
            following = asyncio.create_task(_follow(reloads))
            await asyncio.wait({following, server.warming}, return_when=asyncio.FIRST_COMPLETED)
            if server.warming.done():
                server.warming.result()
                freeze_heap()
            await following
    except TypelessError as error:
        logs.get_logger(__name__).error("engine process cannot serve", why=error.message, reason=error.reason)
        sys.exit(1)
    # A batch that runs in a thread cannot be stopped, and nobody waits for it.
    os._exit(0)


async def _follow(reloads: Reloads) -> None:
    """Take new settings from the standard input, until it ends."""
    from typeless_grpc.config import Loaded, Settings

    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended
            for line in sys.stdin.buffer:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, b"")

    threading.Thread(target=read, name="front", daemon=True).start()
    while line := await lines.get():
        loaded = Loaded(Settings(**json.loads(line)["settings"]), {})
        await reloads.reload(lambda loaded=loaded: loaded)  # type: ignore[misc]


def _end_with(parent: int) -> None:
    """Make the kernel kill this process when its front ends, even if it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
