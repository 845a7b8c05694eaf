"""Signals that stop a server or a worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading


def stop_event() -> asyncio.Event:
    """An event of the running loop that SIGTERM, Ctrl-C and SIGHUP set.

    The second SIGTERM or Ctrl-C ends the process at once. SIGHUP does not count: the shell and the system each send one
    when a terminal closes. `nohup` ignores SIGHUP, and then it stays ignored.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    requests: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if number is not signal.SIGHUP:
            requests.append(number)
        if len(requests) > 1:
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)
    return stop


def say(text: str, *, to_stderr: bool = False) -> None:
    """Print a line. A closed terminal must not end a server, so a failure to write is ignored."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def end_within(seconds: float) -> None:
    """End this process after a time, whatever its threads do: some wait without a way to interrupt them."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
