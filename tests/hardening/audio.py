"""Recordings that hold a number, which the model that waits says: so that a wrong or missing answer shows."""

from __future__ import annotations

import io
import wave
from functools import cache

import numpy as np

from tests.speech import BYTES_PER_S, silence
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio

N_NUMBERS = 100
_FAINTEST, _STEP = 3000, 200  # of the amplitude, in 16-bit samples; all of it is loud enough to be speech


@cache
def spoken(number: int, seconds: float) -> bytes:
    """A tone that holds a number from 0 to 99: raw samples, 16 bits, 16 kHz."""
    assert 0 <= number < N_NUMBERS
    at = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return ((_FAINTEST + _STEP * number) * np.sin(2 * np.pi * 400 * at)).astype("<i2").tobytes()


@cache
def dialogue(number: int, n_utterances: int, seconds: float = 1.0, pause_s: float = 0.9) -> bytes:
    """The number, said several times with pauses."""
    return (spoken(number, seconds) + silence(pause_s)) * n_utterances


def wav(data: bytes) -> bytes:
    """The same in a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes(data)
    return file.getvalue()


def number_of(audio: Audio) -> int:
    """The number that a recording holds; of any other audio, some number."""
    loudest = float(np.abs(audio).max()) * 32768 if len(audio) else 0.0
    return max(0, min(N_NUMBERS - 1, round((loudest - _FAINTEST) / _STEP)))


def text_of(number: int) -> str:
    """What the model says of a number."""
    return f"number {number}"


def seconds_of(data: bytes) -> float:
    """The length of raw samples."""
    return len(data) / BYTES_PER_S
