"""The microphone of this machine as audio for a stream. It needs the extra `[mic]`, and on Linux libportaudio2.

>>> from typeless_grpc.client import Client, StreamOptions
>>> from typeless_grpc.client.microphone import MICROPHONE, microphone
>>> with Client("localhost:50051") as client:  # doctest: +SKIP
...     for event in client.stream(microphone(), StreamOptions(raw_format=MICROPHONE)):
...         if event.HasField("segment"):
...             print(event.segment.text)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from typeless_grpc.client.options import RawFormat
from typeless_grpc.client.threads import from_thread

MICROPHONE = RawFormat("pcm_s16le", 16_000)
"""The format of the bytes: the `raw_format` of the stream."""

_BLOCK_S = 0.1
_END_S = 1.0  # time for a thread to read its last block and release the microphone


class NoMicrophone(Exception):
    """There is no microphone, it stopped, or a library for it is missing, as the message explains."""


def microphone(device: int | str | None = None) -> Generator[bytes, None, None]:
    """Record in blocks of a tenth of a second until closed; for `Client.stream`.

    device: a number or a part of a name as `python -m sounddevice` lists them, None for the default. Raises
    NoMicrophone here rather than at the first block; at a block only if the microphone stops. Closing or dropping the
    generator releases the microphone, also before the first block.
    """
    blocks = _blocks(_recorder(device))
    next(blocks)  # Python closes only generators that have begun
    return blocks


def async_microphone(device: int | str | None = None) -> AsyncGenerator[bytes, None]:
    """The same for `AsyncClient.stream`."""
    # PortAudio terminates with the program, and must not be in use then.
    return from_thread(microphone(device), end_s=_END_S)


def _recorder(device: int | str | None) -> Any:
    """Return a microphone that records. Raises NoMicrophone with what the user can do."""
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


def _blocks(recorder: Any) -> Generator[bytes, None, None]:
    import sounddevice

    try:
        yield b""  # for `microphone`
        while True:
            yield bytes(recorder.read(round(_BLOCK_S * MICROPHONE.sample_rate_hz))[0])
    except sounddevice.PortAudioError as error:
        raise NoMicrophone(f"the microphone stopped: {error}") from error
    finally:
        recorder.close()
