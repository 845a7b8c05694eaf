"""A fork server whose decoder does what the first word of its input says: `python -I broken_decoder.py DESCRIPTOR`."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, cast

from typeless_grpc.audio.sandbox import decoder, fork_server, messages
from typeless_grpc.audio.sandbox.messages import Kind, Request
from typeless_grpc.errors import InvalidInput


def main() -> None:
    fork_server.main(int(sys.argv[1]), decode)


def decode(kind: Kind, request: Request, file: BinaryIO | None, connection: socket.socket) -> None:
    """Misbehave, or report that it was prevented."""
    data = _input(file, connection)
    word, _, rest = data.partition(b" ")
    if word == b"SEND":
        connection.send(rest)
        time.sleep(60)
    act = _ACTS.get(word.decode(errors="replace"))
    if act is None:
        again = connection if file is not None else cast(socket.socket, _Again(connection, data))
        decoder.decode(kind, request, file, again)
        return
    try:
        act()
    except (OSError, RuntimeError, ValueError) as error:
        why = f"prevented: {type(error).__name__}"
        raise InvalidInput("audio.content", why, reason="AUDIO_UNDECODABLE") from error
    raise InvalidInput("audio.content", "it was not prevented", reason="AUDIO_UNDECODABLE")


def _input(file: BinaryIO | None, connection: socket.socket) -> bytes:
    if file is not None:
        data = file.read(1 << 16)
        file.seek(0)
        return data
    connection.send(messages.message(Kind.NEED))
    return messages.parsed(connection.recv(messages.MAX_BYTES))[1]


class _Again:
    """The connection, before the first bytes of the stream were requested and received."""

    def __init__(self, connection: socket.socket, data: bytes) -> None:
        self._connection = connection
        self._first = [messages.message(Kind.DATA, data)]

    def send(self, message: bytes) -> int:
        is_first_need = self._first and messages.parsed(message)[0] is Kind.NEED
        return 0 if is_first_need else self._connection.send(message)

    def recv(self, n_bytes: int) -> bytes:
        return self._first.pop() if self._first else self._connection.recv(n_bytes)


def _hang() -> None:
    while True:
        pass


def _grow() -> None:
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))


def _connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def _load() -> None:
    code = ctypes.CDLL(None).mmap(None, 4096, 4 | 2, 0x22, -1, 0)  # PROT_EXEC | PROT_WRITE
    if code == -1:
        raise OSError("no memory that can be executed")


_ACTS: dict[str, Callable[[], object]] = {
    "CRASH": lambda: ctypes.string_at(0),
    "HANG": _hang,
    "SLEEP": lambda: time.sleep(60),
    "GROW": _grow,
    "EXIT": lambda: os._exit(0),
    "OPEN": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "WRITE": lambda: os.open("/tmp/typeless-escaped", os.O_WRONLY | os.O_CREAT),
    "LIST": lambda: os.listdir("/"),
    "CONNECT": _connect,
    "PAIR": socket.socketpair,
    "FORK": os.fork,
    "EXEC": lambda: os.execv("/bin/true", ["true"]),
    "THREAD": lambda: threading.Thread(target=time.time).start(),
    "SIGNAL": lambda: os.kill(os.getppid(), 0),
    "LIMIT": lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, resource.RLIM_INFINITY)),
    "CODE": _load,
}


if __name__ == "__main__":
    main()
