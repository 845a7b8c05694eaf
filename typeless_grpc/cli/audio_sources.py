"""Where `typeless stream` gets its audio: a file, a pipe, a microphone."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator
from enum import StrEnum
from pathlib import Path
from typing import cast

from typeless_grpc.cli.output import fail
from typeless_grpc.client import RawFormat
from typeless_grpc.client_mic import NoMicrophone, async_microphone, from_thread

_PIECE_S = 0.1
_FILE_PIECE_BYTES = 65_536
_PIPE_PIECE_BYTES = 4096  # what is there is sent, this much at most
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


class Encoding(StrEnum):
    """How bare samples are written."""

    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"
    MULAW = "mulaw"
    ALAW = "alaw"


class BrokenInput(Exception):
    """Standard input cannot be read, or not any more; the text is a line for people."""


async def file_pieces(path: Path) -> AsyncIterator[bytes]:
    """A file, as fast as it is taken."""
    with path.open("rb") as file:
        while data := file.read(_FILE_PIECE_BYTES):
            yield data


async def paced_file(path: Path, raw: RawFormat | None) -> AsyncIterator[bytes]:
    """A file, no faster than it would be spoken. raw: how to read it, None for a container."""
    bytes_per_s = _bytes_per_second(path, raw)
    began_s, n_sent = time.monotonic(), 0
    with path.open("rb") as file:
        while data := file.read(max(1, round(_PIECE_S * bytes_per_s))):
            n_sent += len(data)
            await asyncio.sleep(began_s + n_sent / bytes_per_s - time.monotonic())
            yield data


def standard_input() -> AsyncIterator[bytes]:
    """What is piped in, as it comes. Raises BrokenInput where it cannot be read."""
    # Not through Python's buffer: its lock, held by a thread that waits, would break the end of the command.
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # no file: a test's
        stdin = cast(io.BufferedReader, sys.stdin.buffer)
        return from_thread(_input(lambda: stdin.read1(_PIPE_PIECE_BYTES)))
    return from_thread(_input(lambda: os.read(number, _PIPE_PIECE_BYTES)))


def _input(read: Callable[[], bytes]) -> Generator[bytes, None, None]:
    try:
        while data := read():
            yield data
    except OSError as error:
        raise BrokenInput(f"standard input cannot be read: {error.strerror}") from error


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
