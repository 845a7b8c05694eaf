"""What runs on the machines: the product's own servers and workers, and engines that keep a journal.

The engine transcribes a chunk of a recording as its identity (`tests.faults.node`), and an utterance of a stream as
what shows all of its audio. It writes "number second" to its journal when it begins a chunk, and the same with "done"
when it ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.cluster.network import enter
from tests.faults.node import identity
from tests.scripted_engine import Shelf, built
from tests.speech import fingerprint
from typeless_grpc.app.engine_server import serve_port
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.audio.formats import Audio
from typeless_grpc.cli.engine import run_engine
from typeless_grpc.cli.serve import run_server
from typeless_grpc.cli.worker import run_worker
from typeless_grpc.config import Loaded, Settings
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.engines.reports import Reports
from typeless_grpc.engines.servicer import Served
from typeless_grpc.telemetry import logs

DELAY_S = 0.1  # of each decode
STREAMS = (Lane.LIVE_FINAL, Lane.LIVE_INTERIM)


class JournalEngine(ScriptedEngine):
    """Writes which chunks of recordings it begins and ends."""

    def __init__(self, journal: Path) -> None:
        super().__init__(spoken)
        self._journal = journal.open("a", buffering=1)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        number, second = (-1, -1) if ticket.lane in STREAMS else identity(audio)
        if number >= 0:
            self._journal.write(f"{number} {second}\n")
        await asyncio.sleep(DELAY_S)
        recognition = await super().transcribe(audio, options, ticket)
        if number >= 0:
            self._journal.write(f"{number} {second} done\n")
        self.calls.clear()
        return recognition


def spoken(call: EngineCall) -> str:
    """The text of a call."""
    if call.ticket.lane in STREAMS:
        return fingerprint(call.audio)
    return ":".join(map(str, identity(call.audio)))


async def server(settings: Settings, journal: Path) -> None:
    """`typeless serve`."""
    await run_server(settings, "", lambda: Loaded(settings, {}))


async def worker(settings: Settings, journal: Path) -> None:
    """`typeless worker`."""
    await run_worker(settings, lambda: Loaded(settings, {}))


async def engine(settings: Settings, journal: Path) -> None:
    """`typeless engine` with a scripted engine."""
    stop, reports = asyncio.Event(), Reports()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with built(reports) as parts:
        served = Served(JournalEngine(journal), parts.scheduler, parts.models, Shelf(), "scripted", "nothing")

        async def warm() -> None:
            await parts.models.load("scripted")

        async with serve_port(Reloads(settings), served, reports, warm):
            await stop.wait()


async def whisper(settings: Settings, journal: Path) -> None:
    """`typeless engine` with a real model."""
    await run_engine(settings, lambda: Loaded(settings, {}))


KINDS = {"server": server, "worker": worker, "engine": engine, "whisper": whisper}


def run(machine: str, kind: str, settings: dict[str, Any], journal: Path, log: Path) -> None:
    """Run a program of the product on a machine, with all output in a log. kind: one of KINDS."""
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    enter(machine)
    wanted = Settings(**settings)
    logs.configure("info", "json")
    asyncio.run(KINDS[kind](wanted, journal))


if __name__ == "__main__":  # for another version of the product, which is in the working directory
    name, what, given, written, output = json.loads(sys.argv[1])
    run(name, what, given, Path(written), Path(output))
