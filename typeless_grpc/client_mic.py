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
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from typeless_grpc.client import RawFormat

MICROPHONE = RawFormat("pcm_s16le", 16_000)
"""What a microphone's bytes are: the `raw_format` of the stream."""

_PIECE_S = 0.1
_MAX_WAITING = 600  # pieces: a minute of microphone while nobody takes them


class NoMicrophone(Exception):
    """There is none, or what is needed to use it is not installed; the text says which."""


def microphone(device: int | str | None = None) -> Iterator[bytes]:
    """What is heard, a tenth of a second at a time, for as long as it is read; for `Client.stream`.

    device: a number or a part of a name as `python -m sounddevice` lists them, None for the default. Raises
    NoMicrophone here, not at the first piece.
    """
    return _pieces(_recorder(device))


def async_microphone(device: int | str | None = None) -> AsyncIterator[bytes]:
    """The same for `AsyncClient.stream`."""
    pieces = _pieces(_recorder(device))
    return from_thread(lambda: next(pieces, b""))


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


def _pieces(recorder: Any) -> Iterator[bytes]:
    try:
        while True:
            yield bytes(recorder.read(round(_PIECE_S * MICROPHONE.sample_rate_hz))[0])
    finally:
        recorder.close()


async def from_thread(read: Callable[[], bytes]) -> AsyncIterator[bytes]:
    """What blocking reads give, until one gives nothing."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(_MAX_WAITING)

    def work() -> None:
        data = b"begin"
        while data:
            data = read()
            room.acquire()
            try:
                loop.call_soon_threadsafe(queue.put_nowait, data)
            except RuntimeError:  # the loop is closed: nobody listens any more
                return

    threading.Thread(target=work, name="typeless audio", daemon=True).start()
    while data := await queue.get():
        room.release()
        yield data
