"""Processes that share a port: their settings, what they need, and how they are kept running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from typeless_grpc.app.front_process import Front, check
from typeless_grpc.app.fronts import FrontProcess, Fronts, reserved
from typeless_grpc.config import Settings
from typeless_grpc.errors import EngineFailed, InvalidInput, SourceUnavailable

GOOD: dict[str, Any] = {"front_processes": 2, "redis_url": "redis://localhost", "stream_store": "database"}
# A front as its parent sees it. It writes its index to a file when it starts, and "end" when it has to end.
FRONT = """
import json, os, sys, time
me = json.loads(os.environ["_TYPELESS_FRONT"])
log = open(sys.argv[1], "a", buffering=1)
log.write(f"{me['index']} starts\\n")
print(json.dumps(f"front {me['index']}"), flush=True)
for line in sys.stdin:
    log.write(f"{me['index']} {line}")
    if line == "hang\\n": time.sleep(600)
log.write(f"{me['index']} ends\\n")
"""
BEATING = FRONT.replace(
    "for line", "import threading\ndef heartbeat():\n  while True: print(flush=True); time.sleep(0.05)\n"
    "threading.Thread(target=heartbeat, daemon=True).start()\nfor line"
)  # fmt: skip


def front(index: int, n: int = 2) -> Front:
    return Front(index, n, 50051, os.getpid())


def test_jobs_are_divided_and_each_front_has_its_own_metrics_and_the_first_one_the_console():
    settings = Settings(max_concurrent_jobs=3, metrics_port=9464, console_port=8080, port=0, **GOOD)
    both = [front(index).settings(settings) for index in range(2)]
    assert [one.max_concurrent_jobs for one in both] == [2, 1]
    assert [one.metrics_port for one in both] == [9464, 9465]
    assert [one.console_port for one in both] == [8080, None]
    assert [one.port for one in both] == [50051, 50051]


def test_a_front_knows_itself_by_its_environment_and_its_programs_do_not(monkeypatch: pytest.MonkeyPatch):
    for name, value in front(1).environment().items():
        monkeypatch.setenv(name, value)
    assert Front.of_this_process() == front(1)
    assert Front.of_this_process() is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"redis_url": ""}, "redis_url"),
        ({"stream_store": "none"}, "stream_store"),
        ({"redis_url": "", "rate_limit_enabled": False}, ""),
        ({}, ""),
    ],
)
def test_settings_that_fronts_cannot_share_are_an_error(given: dict[str, Any], why: str):
    settings = Settings(**GOOD | given)
    if not why:
        check(settings)
        return
    with pytest.raises(InvalidInput, match=why):
        check(settings)


def test_a_port_that_another_program_has_is_an_error():
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(SourceUnavailable) as caught, reserved("127.0.0.1", port):
            pass
    assert caught.value.reason == "ADDRESS_IN_USE"


def test_a_reserved_port_is_for_those_that_share_it_alone():
    with reserved("127.0.0.1", 0) as port, closing(socket.socket()) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with closing(socket.create_server(("127.0.0.1", port), reuse_port=True)):
            socket.create_connection(("127.0.0.1", port)).close()


def test_two_servers_of_fronts_do_not_share_a_port():
    with reserved("127.0.0.1", 0) as port, pytest.raises(SourceUnavailable), reserved("127.0.0.1", port):
        pass


@asynccontextmanager
async def running(log: Path, script: str = FRONT, n: int = 2, silent_s: float = 30.0) -> AsyncIterator[Fronts]:
    """Fronts that serve."""
    command = [sys.executable, "-c", script, str(log)]
    fronts = Fronts([FrontProcess(front(index, n), command, silent_s=silent_s) for index in range(n)])
    texts: asyncio.Queue[str] = asyncio.Queue()
    run = asyncio.create_task(fronts.run(texts.put_nowait))
    try:
        serving = asyncio.create_task(texts.get())
        await asyncio.wait({run, serving}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            serving.cancel()
            run.result()
        assert serving.result() == "front 0"
        yield fronts
    finally:
        run.cancel()
        await asyncio.wait({run})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 # another process sets no event
            await asyncio.sleep(0.01)


async def test_the_first_front_serves_before_the_others_start_and_all_end_together(tmp_path: Path):
    log = tmp_path / "log"
    async with running(log, n=3) as fronts:
        assert log.read_text().startswith("0 starts\n")
        fronts.reload()
        await until(lambda: log.read_text().count("reload") == 3)
    assert log.read_text().count("ends") == 3


async def test_a_killed_front_is_started_again_and_the_other_goes_on(tmp_path: Path):
    log = tmp_path / "log"
    async with running(log) as fronts:
        pids = [one.pid for one in fronts.processes]
        assert pids[1] is not None
        os.kill(pids[1], signal.SIGKILL)
        await until(lambda: log.read_text().count("1 starts") == 2 and fronts.processes[1].pid != pids[1])
        assert fronts.processes[0].pid == pids[0]
    assert log.read_text().count("ends") == 2


async def test_a_front_that_falls_silent_is_killed_and_started_again(tmp_path: Path):
    log = tmp_path / "log"
    async with running(log, BEATING, silent_s=2.0) as fronts:
        pid = fronts.processes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: log.read_text().count("1 starts") == 2)
        assert log.read_text().count("0 starts") == 1


@pytest.mark.parametrize("index", [0, 1])
async def test_a_front_that_never_serves_ends_all(index: int, tmp_path: Path):
    log = tmp_path / "log"
    failing = FRONT.replace("print(", f"sys.exit(3) if me['index'] == {index} else print(")
    with pytest.raises(EngineFailed, match=f"Front process {index}"):
        async with running(log, failing):
            pass


PARENT = """
import subprocess, sys, os
from typeless_grpc.app.front_process import Front
child = "from typeless_grpc.app.front_process import Front; Front.of_this_process().end_with_parent(); " \\
    "print('ready', flush=True); __import__('time').sleep(600)"
subprocess.run([sys.executable, "-c", child], env=os.environ | Front(0, 1, 1, os.getpid()).environment())
"""


def test_a_front_ends_with_the_process_that_has_started_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == ""  # once both have ended
