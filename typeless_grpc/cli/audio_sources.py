"""Where commands get audio that is no file: a pipe, a microphone; and where `typeless stream` gets all of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from enum import StrEnum
from pathlib import Path
from typing import cast

from typeless_grpc.cli.files import STANDARD_INPUT, is_pipe
from typeless_grpc.cli.output import fail
from typeless_grpc.client import RawFormat
from typeless_grpc.client.microphone import NoMicrophone, async_microphone
from typeless_grpc.client.threads import from_thread

_PIECE_S = 0.1
_FILE_PIECE_BYTES = 65_536
_PIPE_PIECE_BYTES = 4096  # what is there is sent, this much at most
# Of a pipe in one call, where the server does not say what it takes: none takes more in a message.
MAX_PIPED_BYTES = 1024 * 1024 * 1024
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


class Encoding(StrEnum):
    """How bare samples are written."""

    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"
    MULAW = "mulaw"
    ALAW = "alaw"


class BrokenInput(Exception):
    """A pipe cannot be read, or not any more, or holds too much; the text is what to say of it."""


async def file_pieces(path: Path) -> AsyncGenerator[bytes, None]:
    """A file, as fast as it is taken."""
    with path.open("rb") as file:
        while data := file.read(_FILE_PIECE_BYTES):
            yield data


async def paced_file(path: Path, raw: RawFormat | None) -> AsyncGenerator[bytes, None]:
    """A file, no faster than it would be spoken. raw: how to read it, None for a container."""
    bytes_per_s = _bytes_per_second(path, raw)
    began_s, n_sent = time.monotonic(), 0
    with path.open("rb") as file:
        while data := file.read(max(1, round(_PIECE_S * bytes_per_s))):
            n_sent += len(data)
            await asyncio.sleep(began_s + n_sent / bytes_per_s - time.monotonic())
            yield data


def piped(file: Path, piece_bytes: int = _PIPE_PIECE_BYTES) -> AsyncGenerator[bytes, None]:
    """What comes out of a pipe, as it comes; see `files.is_pipe`. Raises BrokenInput where it cannot be read."""
    if file != STANDARD_INPUT:
        return from_thread(_pipe(file, piece_bytes))
    # Not through Python's buffer: its lock, held by a thread that waits, would break the end of the command.
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # no file: a test's
        stdin = cast(io.BufferedReader, sys.stdin.buffer)
        return from_thread(_input(lambda: stdin.read1(piece_bytes)))
    return from_thread(_input(lambda: os.read(number, piece_bytes)))


async def not_empty(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same pieces. Raises BrokenInput where there are none: what was to write them has most likely failed."""
    async with contextlib.aclosing(pieces):
        is_empty = True
        async for piece in pieces:
            is_empty = False
            yield piece
        if is_empty:
            raise BrokenInput("holds no audio")


async def content_of(file: Path, max_bytes: int) -> bytes:
    """All of a recording. max_bytes: of a pipe, whose end is not known; a file's size is the server's to refuse.

    Raises BrokenInput where it cannot be read.
    """
    if not is_pipe(file):
        try:
            return await asyncio.to_thread(file.read_bytes)
        except OSError as error:
            raise BrokenInput(f"cannot be read: {error.strerror}") from error
    content = bytearray()
    async with contextlib.aclosing(piped(file, _FILE_PIECE_BYTES)) as pieces:
        async for piece in pieces:
            content += piece
            if len(content) > max_bytes:
                raise BrokenInput(
                    f"has more than the {max_bytes:,} bytes that a call may have: `typeless jobs submit` takes more"
                )
    return bytes(content)


def _pipe(file: Path, piece_bytes: int) -> Generator[bytes, None, None]:
    try:
        # Here, in the thread of `from_thread`: opening a pipe waits for who writes to it.
        pipe = file.open("rb", buffering=0)
    except OSError as error:
        raise BrokenInput(f"cannot be read: {error.strerror}") from error
    with pipe:
        yield from _input(lambda: pipe.read(piece_bytes))


def _input(read: Callable[[], bytes]) -> Generator[bytes, None, None]:
    try:
        while data := read():
            yield data
    except OSError as error:
        raise BrokenInput(f"cannot be read: {error.strerror}") from error


def microphone(device: str) -> AsyncIterator[bytes]:
    """A microphone, as MICROPHONE says; "" for the default one. Ends the command where there is none."""
    try:
        return async_microphone(int(device) if device.isdecimal() else device or None)
    except NoMicrophone as error:
        fail(str(error))


def _bytes_per_second(path: Path, raw: RawFormat | None) -> float:
    if raw is not None:
        return raw.sample_rate_hz * raw.n_channels * _SAMPLE_BYTES[raw.encoding]
    from typeless_grpc.audio.decode import DecodeLimits, decode
    from typeless_grpc.audio.formats import AudioFormat

    data = path.read_bytes()
    return len(data) / decode(data, AudioFormat(), DecodeLimits(24 * 3600.0)).duration_s
