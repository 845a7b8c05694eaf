from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.cli.signals import say, stop_event

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The codes that the process would have ended with at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    yield codes
    for number in STOPS:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


async def delivered() -> None:
    for _ in range(2):  # the loop gets a signal through a pipe, and then calls its handler
        await until_idle()


@pytest.mark.parametrize("number", STOPS)
async def test_each_signal_sets_the_event(number: signal.Signals, ends: list[int]):
    stop = stop_event()
    assert not stop.is_set()
    signal.raise_signal(number)
    await asyncio.wait_for(stop.wait(), 5)
    assert ends == []


@pytest.mark.parametrize(
    ("numbers", "is_ended"),
    [
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGINT, signal.SIGTERM], True),
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], False),
        ([signal.SIGTERM, signal.SIGHUP], False),
        ([signal.SIGHUP, signal.SIGTERM], False),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGTERM], True),
    ],
    ids=lambda value: " ".join(one.name for one in value) if isinstance(value, list) else "",
)
async def test_the_second_signal_ends_the_process(numbers: list[signal.Signals], is_ended: bool, ends: list[int]):
    stop = stop_event()
    for number in numbers:
        signal.raise_signal(number)
        await delivered()
    await asyncio.wait_for(stop.wait(), 5)
    assert ends == ([130] if is_ended else [])


async def test_under_nohup_sighup_is_ignored(ends: list[int]):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = stop_event()
    signal.raise_signal(signal.SIGHUP)
    await delivered()
    assert not stop.is_set()


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
