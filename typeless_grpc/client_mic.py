"""The microphone of this machine as audio for a stream; the extra `[mic]`, and on Linux PortAudio (libportaudio2).

>>> from typeless_grpc.client import Client
>>> from typeless_grpc.client_mic import MICROPHONE, microphone
>>> from typeless_grpc.client_stream import StreamOptions
>>> with Client("localhost:50051") as client:  # doctest: +SKIP
...     for event in client.stream(microphone(), StreamOptions(raw_format=MICROPHONE)):
...         if event.HasField("segment"):
...             print(event.segment.text)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

from typeless_grpc.client import RawFormat

MICROPHONE = RawFormat("pcm_s16le", 16_000)
"""What a microphone's bytes are: the `raw_format` of the stream."""

_PIECE_S = 0.1
_MAX_WAITING = 600  # pieces: a minute of microphone while nobody takes them


class NoMicrophone(Exception):
    """There is none, it stopped, or what is needed to use it is not installed; the text says which."""


def microphone(device: int | str | None = None) -> Generator[bytes, None, None]:
    """What is heard, a tenth of a second at a time, for as long as it is read; for `Client.stream`.

    device: a number or a part of a name as `python -m sounddevice` lists them, None for the default. Raises
    NoMicrophone here, not at the first piece; at a piece only where the microphone stops.
    """
    return _pieces(_recorder(device))


def async_microphone(device: int | str | None = None) -> AsyncGenerator[bytes, None]:
    """The same for `AsyncClient.stream`."""
    return from_thread(_pieces(_recorder(device)))


def _recorder(device: int | str | None) -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise NoMicrophone("the microphone needs sounddevice: pip install 'typeless-grpc[mic]'") from error
    except OSError as error:  # its library is missing
        raise NoMicrophone(f"the microphone needs PortAudio ({error}): apt-get install libportaudio2") from error
    try:
        recorder = sounddevice.RawInputStream(
            samplerate=MICROPHONE.sample_rate_hz, channels=1, dtype="int16", device=device
        )
        recorder.start()
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no device of this name
        raise NoMicrophone(f"the microphone cannot be used: {error}") from error
    return recorder


def _pieces(recorder: Any) -> Generator[bytes, None, None]:
    import sounddevice

    try:
        while True:
            yield bytes(recorder.read(round(_PIECE_S * MICROPHONE.sample_rate_hz))[0])
    except sounddevice.PortAudioError as error:
        raise NoMicrophone(f"the microphone stopped: {error}") from error
    finally:
        recorder.close()


async def from_thread(pieces: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    """What a generator gives that blocks; it is read in a thread, and what it raises is raised here.

    The thread closes it when it is read to its end, and at its next piece after this generator was closed.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
    room = threading.Semaphore(_MAX_WAITING)
    stopped = threading.Event()

    def tell(item: bytes | BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            stopped.set()

    def work() -> None:
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    room.acquire()
                    if stopped.is_set():
                        return
                    tell(piece)
        except BaseException as error:
            tell(error)
        else:
            tell(None)

    threading.Thread(target=work, name="typeless audio", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
