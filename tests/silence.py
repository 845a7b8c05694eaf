"""A TCP proxy that can fall silent: it accepts data and forwards nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_TICK_S = 0.05


class SilentProxy:
    """Forwards connections to a loopback port, except between `fall_silent` and `speak`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._forwards = threading.Event()
        self._forwards.set()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TICK_S)
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Stop forwarding: nothing is answered or reset, and new connections are accepted."""
        self._forwards.clear()

    def speak(self) -> None:
        """Forward again; connections from before are closed, and their data is lost."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._forwards.set()

    def close(self) -> None:
        self._closed.set()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                taken, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._sockets.append(taken)
            if self._forwards.is_set():
                target = socket.create_connection(("127.0.0.1", self._target_port))
                self._sockets.append(target)
                for one, other in ((taken, target), (target, taken)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if self._forwards.is_set():
                    other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
