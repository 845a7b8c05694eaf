from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.cli.signals import hold_hang_ups, requests, say

STOPS = [signal.SIGTERM, signal.SIGINT]
HANG_UP = signal.SIGHUP


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The codes that the process would have ended with at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    yield codes
    for number in (*STOPS, HANG_UP):
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


async def delivered() -> None:
    for _ in range(2):  # the loop gets a signal through a pipe, and then calls its handler
        await until_idle()


@pytest.mark.parametrize("number", STOPS)
async def test_each_stop_signal_sets_the_event(number: signal.Signals, ends: list[int]):
    requested = requests()
    assert not requested.stop.is_set()
    signal.raise_signal(number)
    await asyncio.wait_for(requested.stop.wait(), 30)
    assert ends == []


@pytest.mark.parametrize(
    ("numbers", "is_ended"),
    [
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGINT, signal.SIGTERM], True),
        ([signal.SIGTERM, HANG_UP], False),
        ([HANG_UP, signal.SIGTERM], False),
        ([HANG_UP, signal.SIGTERM, signal.SIGTERM], True),
    ],
    ids=lambda value: " ".join(one.name for one in value) if isinstance(value, list) else "",
)
async def test_the_second_signal_ends_the_process(numbers: list[signal.Signals], is_ended: bool, ends: list[int]):
    requested = requests()
    for number in numbers:
        signal.raise_signal(number)
        await delivered()
    await asyncio.wait_for(requested.stop.wait(), 30)
    assert ends == ([130] if is_ended else [])


async def test_sighup_requests_a_reload_and_several_at_once_request_one(ends: list[int]):
    requested = requests()
    for _ in range(5):
        signal.raise_signal(HANG_UP)
        await delivered()
    await asyncio.wait_for(requested.reload.wait(), 30)
    requested.reload.clear()
    await asyncio.sleep(0.5)
    assert not requested.reload.is_set()
    signal.raise_signal(HANG_UP)
    await asyncio.wait_for(requested.reload.wait(), 30)
    assert (requested.stop.is_set(), ends) == (False, [])


async def test_sighup_while_the_program_loads_is_held_until_it_runs(ends: list[int]):
    hold_hang_ups()
    signal.raise_signal(HANG_UP)
    assert requests().reload.is_set()


async def test_nothing_is_held_if_no_signal_came(ends: list[int]):
    hold_hang_ups()
    assert not requests().reload.is_set()


# ---- a terminal that closes

PROCESS = """
import asyncio, signal, sys, time
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from typeless_grpc.cli.signals import hold_hang_ups, requests
if "early" in sys.argv:
    hold_hang_ups()
    print("ready", file=sys.stderr, flush=True)
    while not signal.getsignal(signal.SIGHUP).has_come:
        time.sleep(0.02)
    print("held", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.02)
async def main():
    requested = requests()
    print("ready", file=sys.stderr, flush=True)
    while True:
        waits = [asyncio.create_task(one.wait()) for one in (requested.stop, requested.reload)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if requested.stop.is_set():
            print("stop", file=sys.stderr, flush=True)
            return
        requested.reload.clear()
        print("reload", file=sys.stderr, flush=True)
asyncio.run(main())
"""


class OnTerminal:
    """A process that leads the session of a terminal of its own, and writes what it does to a pipe."""

    def __init__(self, *words: str) -> None:
        self._reading, writing = os.pipe()
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            os.dup2(writing, 2)
            os.execv(sys.executable, [sys.executable, "-c", PROCESS, *words])
        os.close(writing)
        self._written = b""

    def until(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until it has written this text."""
        ends_s = time.monotonic() + timeout_s
        while text.encode() not in self._written:
            left_s = ends_s - time.monotonic()
            assert left_s > 0, f"only {self._written!r} came"
            if select.select([self._reading], [], [], left_s)[0]:
                data = os.read(self._reading, 4096)
                assert data, f"it ended after {self._written!r}"
                self._written += data
        self._written = self._written.partition(text.encode())[2]

    def hang_up(self) -> None:
        """Close its terminal."""
        os.close(self._terminal)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end, and return its exit code; negative for a signal."""
        while data := os.read(self._reading, 4096):
            self._written += data
        os.close(self._reading)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_that_closes_stops_the_process_and_a_signal_before_that_reloads():
    process = OnTerminal()
    process.until("ready")
    process.signal(HANG_UP)
    process.until("reload")
    process.hang_up()
    process.until("stop")
    assert process.wait() == 0


def test_under_nohup_a_process_outlives_its_terminal_and_still_reloads():
    process = OnTerminal("nohup")
    process.until("ready")
    process.hang_up()
    time.sleep(0.5)  # the hang-up is not taken for a reload, nor for a stop
    process.signal(HANG_UP)
    process.until("reload")
    process.signal(signal.SIGTERM)
    process.until("stop")
    assert process.wait() == 0


def test_a_terminal_that_closes_while_the_program_loads_ends_it():
    process = OnTerminal("early")
    process.until("ready")
    process.signal(HANG_UP)
    process.until("held")
    process.hang_up()
    assert process.wait() == 128 + HANG_UP


def test_without_a_terminal_sighup_reloads():
    command = [sys.executable, "-c", PROCESS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        assert process.stderr.readline() == "ready\n"
        process.send_signal(HANG_UP)
        assert process.stderr.readline() == "reload\n"
        process.terminate()
        assert process.stderr.readline() == "stop\n"


@pytest.mark.parametrize("to_stderr", [False, True])
def test_printing_to_a_closed_terminal_is_ignored(to_stderr: bool, monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8", closefd=False) as closed:
        monkeypatch.setattr(sys, "stderr" if to_stderr else "stdout", closed)
        say("Stopping.", to_stderr=to_stderr)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what is left to write goes there
    os.close(writing)
