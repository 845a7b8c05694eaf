"""The server under attack: the product's own wiring around a scripted engine, in a process of its own.

Its limits are the defaults, except for quotas: they would refuse most of what is tried before it is read.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import resource
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from typeless_grpc.app.root import listen
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.telemetry import logs

HOSTILE, WITNESS = "the-key-of-the-hostile-caller", "the-key-of-the-witness"
GROUPS = ("transcribe", "long", "batch", "stream", "config", "health", "riva", "google", "audio")
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "drain_timeout_s": 1.0,
    "auth_enabled": True,
    "require_auth": True,
    "api_keys": f"{HOSTILE},{WITNESS}",
    "stream_resume_window_s": 1.0,
    **{f"rate_limit_{group}": "off" for group in GROUPS},
}
STATE, STATE_AT_REST, STOP = "state", "state at rest", "stop"


@dataclass(frozen=True)
class State:
    """What a server holds. n_tasks: of its event loop."""

    n_tasks: int
    n_threads: int
    n_descriptors: int
    memory_bytes: int
    cpu_s: float


class ForgetfulEngine(ScriptedEngine):
    """Says how long the audio was, and keeps no list of its calls."""

    def __init__(self) -> None:
        super().__init__(self._spoken)

    def _spoken(self, call: EngineCall) -> str:
        self.calls.clear()
        return f"{len(call.audio) / 16_000:.1f} seconds"


def run(log: Path, settings: dict[str, Any], control: Connection) -> None:
    """Serve until the other end of control sends STOP or is closed, with all output in a log."""
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard > 0 else soft, hard))
    asyncio.run(_serve(settings, control))


async def _serve(given: dict[str, Any], control: Connection) -> None:
    logs.configure("info", "json")
    stop = asyncio.Event()

    def answer() -> None:
        try:
            command = control.recv()
        except EOFError:
            command = STOP
        if command == STOP:
            asyncio.get_running_loop().remove_reader(control.fileno())
            stop.set()
        else:
            if command == STATE_AT_REST:
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is free, otherwise
            control.send(_state())

    with TemporaryDirectory() as directory:
        settings = Settings(**SETTINGS | {"data_dir": directory} | given)
        async with listen(settings, engine=ForgetfulEngine(), detector=LoudnessDetector()) as listening:
            await listening.server.serving()
            control.send(listening.port)
            asyncio.get_running_loop().add_reader(control.fileno(), answer)
            await stop.wait()


def _state() -> State:
    process = psutil.Process()
    times = process.cpu_times()
    return State(
        n_tasks=len(asyncio.all_tasks()),
        n_threads=process.num_threads(),
        n_descriptors=process.num_fds(),
        memory_bytes=process.memory_info().rss,
        cpu_s=times.user + times.system,
    )


def problems(log: Path) -> list[str]:
    """Return the lines of a log that no caller may cause: errors. What is not JSON is printed by gRPC itself."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {"level": "error"} if line.startswith("Fatal Python error") else {}
        if isinstance(entry, dict) and entry.get("level") in ("error", "critical"):
            found.append(line)
    return found
