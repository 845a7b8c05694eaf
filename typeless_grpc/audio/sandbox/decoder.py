"""The program of a decoder process: takes one request, decodes its audio, and ends."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import BinaryIO, cast

from typeless_grpc.audio.arriving import decode_arriving
from typeless_grpc.audio.decode import AudioReader, DecodeLimits
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.sandbox import confinement, messages
from typeless_grpc.audio.sandbox.messages import Kind, Request
from typeless_grpc.errors import InvalidInput

OUT_OF_MEMORY = 3  # exit status
_MAX_TRACEBACK = 4096

# Decodes a request: its kind, itself, its file (None of a stream), and the socket to the server.
Decode = Callable[[Kind, Request, BinaryIO | None, socket.socket], None]


def serve(connection: socket.socket, base_bytes: int, decode: Decode) -> None:
    """Take a request, confine this process, decode, and answer.

    base_bytes: the address space of the process before it decodes.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, messages.MAX_BYTES, 1)
    if not data:
        return  # the server does not need this process
    kind, payload = messages.parsed(data)
    request = messages.request_of(payload)
    file = None
    if kind is Kind.RECORDING:
        file = cast(BinaryIO, os.fdopen(descriptors[0], "rb") if descriptors else _remote(connection, request.n_bytes))
    confinement.confine(base_bytes + request.memory_bytes, request.cpu_s)
    try:
        _answer(connection, decode, kind, request, file)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def decode(kind: Kind, request: Request, file: BinaryIO | None, connection: socket.socket) -> None:
    """Decode a recording or a stream. Raises InvalidInput."""
    format = AudioFormat(sample_rate_hz=request.sample_rate_hz, n_channels=request.n_channels)
    if kind is Kind.STREAM:
        decode_arriving(_Feeder(connection), format, field=messages.AUDIO, is_live=request.is_live)
        return
    assert file is not None
    reader = AudioReader(
        file,
        format,
        DecodeLimits(request.max_duration_s, request.max_channels),
        field=messages.AUDIO,
        separate_channels=request.separate_channels,
        block_s=request.block_s,
    )
    connection.send(messages.object_message(Kind.OPENED, asdict(reader.source)))
    for block in reader.blocks():
        for part in messages.block_messages(block, reader.position):
            connection.send(part)


def _answer(connection: socket.socket, decode: Decode, kind: Kind, request: Request, file: BinaryIO | None) -> None:
    """Decode for one request, and send the samples and then the end, or what failed."""
    try:
        decode(kind, request, file, connection)
        connection.send(messages.message(Kind.END))
    except (BrokenPipeError, ConnectionResetError):
        return  # the server has closed the connection
    except InvalidInput as error:
        if _is_of_memory(error):
            raise MemoryError from error
        connection.send(messages.invalid_message(error))
    except MemoryError:
        raise
    except Exception:
        connection.send(messages.message(Kind.FAULT, traceback.format_exc()[-_MAX_TRACEBACK:].encode()))


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether an error has its cause in a MemoryError; those of PyAV are errors of FFmpeg, too."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


class _Feeder:
    """A `Feeder` at the other end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def more(self) -> bytes:
        self._connection.send(messages.message(Kind.NEED))
        return _received(self._connection)

    def opened(self, declared_s: float | None) -> None:
        self._connection.send(messages.object_message(Kind.OPENED, {"declared_s": declared_s}))

    def take(self, samples: Audio) -> None:
        for part in messages.block_messages(samples, 0):
            self._connection.send(part)

    def is_cancelled(self) -> bool:
        return False  # the server ends this process instead


def _remote(connection: socket.socket, n_bytes: int) -> io.BufferedReader:
    return io.BufferedReader(_RemoteFile(connection, n_bytes), messages.DATA_BYTES)


class _RemoteFile(io.RawIOBase):
    """A file that the server reads for this process, because it has no descriptor."""

    def __init__(self, connection: socket.socket, n_bytes: int) -> None:
        super().__init__()
        self._connection, self._n_bytes, self._position = connection, n_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n_bytes = min(len(buffer), messages.DATA_BYTES, max(0, self._n_bytes - self._position))
        if not n_bytes:
            return 0
        self._connection.send(messages.message(Kind.READ, messages.READ.pack(self._position, n_bytes)))
        data = _received(self._connection)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _received(connection: socket.socket) -> bytes:
    """Return bytes from the server, none at the end. Raises OSError if it has closed the connection."""
    data = connection.recv(messages.MAX_BYTES)
    if not data:
        raise ConnectionResetError
    return messages.parsed(data)[1]
