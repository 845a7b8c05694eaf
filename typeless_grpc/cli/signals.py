"""Signals that stop a server or a worker, or make it read its settings again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from dataclasses import dataclass, field

# Wait after SIGHUP: the kernel takes a moment to detach a terminal that has closed. It also joins repeated signals.
HANG_UP_S = 0.2


@dataclass(frozen=True)
class Requests:
    """What signals request. stop: end the process. reload: read the settings again; the reader clears it."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)


def requests() -> Requests:
    """Handle signals in the running loop: SIGTERM and Ctrl-C stop the process, SIGHUP makes it reload its settings.

    The second SIGTERM or Ctrl-C ends the process at once. SIGHUP also comes, often twice, when the process's terminal
    closes. Then it stops the process, unless it was started by `nohup`, which ignores SIGHUP.
    """
    found, loop, terminal = Requests(), asyncio.get_running_loop(), Terminal()
    held = signal.getsignal(signal.SIGHUP)
    if isinstance(held, _HeldHangUp) and held.has_come:
        found.reload.set()
    stops: list[signal.Signals] = []
    deciding: list[asyncio.TimerHandle] = []

    def on_stop(number: signal.Signals) -> None:
        stops.append(number)
        if len(stops) > 1:
            os._exit(130)
        found.stop.set()

    def on_hang_up() -> None:
        if not deciding:
            deciding.append(loop.call_later(HANG_UP_S, decide))

    def decide() -> None:
        deciding.clear()
        if not terminal.has_closed():
            found.reload.set()
        elif not terminal.is_ignored:
            found.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, on_hang_up)
    return found


class Terminal:
    """The terminal of this process, if it has one. is_ignored: SIGHUP was ignored at the start, as under `nohup`."""

    def __init__(self) -> None:
        self.is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._was_open = _has_terminal()

    def has_closed(self) -> bool:
        """Whether the terminal has closed since the last call that returned True, or since the start."""
        has_closed = self._was_open and not _has_terminal()
        self._was_open = self._was_open and not has_closed
        return has_closed


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def hold_hang_ups() -> None:
    """Until `requests` is called, let SIGHUP end this process only if its terminal has closed.

    A service manager may request a reload while the program still loads. The reload then follows the start.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _HeldHangUp())


class _HeldHangUp:
    """A handler of SIGHUP. has_come: whether SIGHUP came although the terminal has not closed."""

    def __init__(self) -> None:
        self.has_come = False
        self._terminal = Terminal()

    def __call__(self, *_: object) -> None:
        if self._terminal.has_closed():
            sys.exit(128 + signal.SIGHUP)
        self.has_come = True


def say(text: str, *, to_stderr: bool = False) -> None:
    """Print a line. A closed terminal must not end a server, so a failure to write is ignored."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def end_within(seconds: float) -> None:
    """End this process after a time, because some threads cannot be interrupted."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
