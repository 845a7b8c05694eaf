"""Reads audio for commands: pipes, the microphone, and files as `typeless stream` sends them."""

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

_BLOCK_S = 0.1
_FILE_BLOCK_BYTES = 65_536
_PIPE_BLOCK_BYTES = 4096  # at most; a shorter block is sent at once
# The most that a command reads from a pipe if the server does not report its limit. No server accepts more.
MAX_PIPED_BYTES = 1024 * 1024 * 1024
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


class Encoding(StrEnum):
    """The encoding of raw samples."""

    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"
    MULAW = "mulaw"
    ALAW = "alaw"


class BrokenInput(Exception):
    """A recording cannot be read, or is too large. The message continues a sentence that begins with its name."""


async def file_blocks(path: Path) -> AsyncGenerator[bytes, None]:
    """Read a file as fast as the stream takes it."""
    with path.open("rb") as file:
        while data := file.read(_FILE_BLOCK_BYTES):
            yield data


async def paced_file(path: Path, raw: RawFormat | None) -> AsyncGenerator[bytes, None]:
    """Read a file at the pace of speech. raw: the format of raw samples, None for a container."""
    bytes_per_s = _bytes_per_second(path, raw)
    began_s, n_sent = time.monotonic(), 0
    with path.open("rb") as file:
        while data := file.read(max(1, round(_BLOCK_S * bytes_per_s))):
            n_sent += len(data)
            await asyncio.sleep(began_s + n_sent / bytes_per_s - time.monotonic())
            yield data


def piped(file: Path, block_bytes: int = _PIPE_BLOCK_BYTES) -> AsyncGenerator[bytes, None]:
    """Read a pipe as data arrives; see `files.is_pipe`. Raises BrokenInput if it cannot be read."""
    if file != STANDARD_INPUT:
        return from_thread(_pipe(file, block_bytes))
    # Python's buffer has a lock, which a waiting thread would still hold at the end of the command.
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # replaced by a test
        stdin = cast(io.BufferedReader, sys.stdin.buffer)
        return from_thread(blocks_of(lambda: stdin.read1(block_bytes)))
    return from_thread(blocks_of(lambda: os.read(number, block_bytes)))


async def not_empty(blocks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pass the blocks on. Raises BrokenInput if there are none: the program that writes the pipe has likely failed."""
    async with contextlib.aclosing(blocks):
        is_empty = True
        async for block in blocks:
            is_empty = False
            yield block
        if is_empty:
            raise BrokenInput("contains no audio")


async def content_of(file: Path, max_bytes: int) -> bytes:
    """Read a whole recording. max_bytes: the limit for a pipe; the server checks the size of a file.

    Raises BrokenInput if it cannot be read.
    """
    if not is_pipe(file):
        try:
            return await asyncio.to_thread(file.read_bytes)
        except OSError as error:
            raise BrokenInput(f"cannot be read: {error.strerror}") from error
    content = bytearray()
    async with contextlib.aclosing(piped(file, _FILE_BLOCK_BYTES)) as blocks:
        async for block in blocks:
            content += block
            if len(content) > max_bytes:
                raise BrokenInput(
                    f"has more than {max_bytes:,} bytes, the most for one call: `typeless jobs submit` accepts more"
                )
    return bytes(content)


def _pipe(file: Path, block_bytes: int) -> Generator[bytes, None, None]:
    try:
        # Opening a pipe waits for its writer. This runs in the thread of `from_thread`.
        pipe = file.open("rb", buffering=0)
    except OSError as error:
        raise BrokenInput(f"cannot be read: {error.strerror}") from error
    with pipe:
        yield from blocks_of(lambda: pipe.read(block_bytes))


def blocks_of(read: Callable[[], bytes]) -> Generator[bytes, None, None]:
    try:
        while data := read():
            yield data
    except OSError as error:
        raise BrokenInput(f"cannot be read: {error.strerror}") from error


def microphone(device: str) -> AsyncIterator[bytes]:
    """Record in the format MICROPHONE; "" is the default device. Ends the command if there is none."""
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
