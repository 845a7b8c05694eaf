"""How commands that run until they are told to stop are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading


def told_to_stop() -> asyncio.Event:
    """An event that SIGTERM, Ctrl-C and the end of the terminal (SIGHUP) set; belongs to the running loop.

    SIGTERM or Ctrl-C for the second time ends the process: who asks twice does not want to wait. A terminal's end is no
    such asking, since the shell and the system each tell of it; and under `nohup`, which ignores it, it stays ignored.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if number is not signal.SIGHUP:
            asked.append(number)
        if len(asked) > 1:
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)
    return stop


def say(text: str, *, to_stderr: bool = False) -> None:
    """Print a line, unless nobody can read it any more: a terminal that is gone must not end a server."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def end_within(seconds: float) -> None:
    """End this process by then, whatever its threads do: some wait for what cannot be interrupted."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
