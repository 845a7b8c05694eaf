"""Opens the decoders of containers: processes of their own, unless the settings turn that off."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from typeless_grpc.audio.decoders import IN_PROCESS, Decoders, sandboxed
from typeless_grpc.audio.observer import DecoderObserver
from typeless_grpc.audio.sandbox.processes import DecoderProcesses
from typeless_grpc.config import Settings
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


@asynccontextmanager
async def open_decoders(
    settings: Settings, observer: DecoderObserver
) -> AsyncIterator[tuple[Decoders, Awaitable[None]]]:
    """Yield the decoders, and an awaitable that is done once their processes can start. All end with the block.

    The awaitable raises SourceUnavailable if they cannot.
    """
    if settings.decoder_sandbox == "off" or sys.platform != "linux":
        if settings.decoder_sandbox != "off":
            log.warning("decoder_sandbox needs Linux: this process decodes all audio itself")
        ready = asyncio.get_running_loop().create_future()
        ready.set_result(None)
        yield IN_PROCESS, ready
        return
    processes = DecoderProcesses(observer=observer)
    starting = asyncio.create_task(_start(processes))
    try:
        yield sandboxed(processes), starting
    finally:
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.to_thread(processes.close)


async def _start(processes: DecoderProcesses) -> None:
    if await asyncio.to_thread(processes.start):
        log.info("containers are decoded in processes", confined_by="setrlimit, no_new_privs, seccomp")
    else:
        log.warning("decoder processes can open files and sockets: this machine filters no system calls (seccomp)")
