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
_END_S = 1.0  # for a thread to read its last piece and let go of the microphone
_MAX_WAITING = 600  # pieces: a minute of microphone while nobody takes them


class NoMicrophone(Exception):
    """There is none, it stopped, or what is needed to use it is not installed; the text says which."""


def microphone(device: int | str | None = None) -> Generator[bytes, None, None]:
    """What is heard, a tenth of a second at a time, for as long as it is read; for `Client.stream`.

    device: a number or a part of a name as `python -m sounddevice` lists them, None for the default. Raises
    NoMicrophone here, not at the first piece; at a piece only where the microphone stops. Whoever closes or drops this
    lets go of the microphone, also before the first piece.
    """
    pieces = _pieces(_recorder(device))
    next(pieces)  # a generator that has not begun would be dropped without closing anything
    return pieces


def async_microphone(device: int | str | None = None) -> AsyncGenerator[bytes, None]:
    """The same for `AsyncClient.stream`."""
    # PortAudio, ended at the end of the program, must not be in use by then.
    return from_thread(microphone(device), end_s=_END_S)


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
        try:
            recorder.start()
        except BaseException:
            recorder.close()
            raise
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no device of this name
        raise NoMicrophone(f"the microphone cannot be used: {error}") from error
    return recorder


def _pieces(recorder: Any) -> Generator[bytes, None, None]:
    import sounddevice

    try:
        yield b""  # begun: no piece
        while True:
            yield bytes(recorder.read(round(_PIECE_S * MICROPHONE.sample_rate_hz))[0])
    except sounddevice.PortAudioError as error:
        raise NoMicrophone(f"the microphone stopped: {error}") from error
    finally:
        recorder.close()


async def from_thread(pieces: Generator[bytes, None, None], end_s: float = 0.0) -> AsyncGenerator[bytes, None]:
    """What a generator gives that blocks; it is read in a thread, and what it raises is raised here.

    The thread closes it when it is read to its end, and at its next piece after this generator was closed; end_s: how
    long closing this one waits for that.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
    room = threading.Semaphore(_MAX_WAITING)
    stopped, ended = threading.Event(), asyncio.Event()

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
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

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
        if end_s and not loop.is_closed():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(end_s):
                    await ended.wait()
