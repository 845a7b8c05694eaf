"""Synthetic speech: tones that a `LoudnessDetector` takes for speech, and scripts for an engine that show its audio."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.scripted import EngineCall

BYTES_PER_S = 2 * SAMPLE_RATE_HZ


def tone(seconds: float, *, hz: float = 440.0) -> bytes:
    """Speech, as raw 16-bit samples at 16 kHz."""
    at = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (8000 * np.sin(2 * np.pi * hz * at)).astype("<i2").tobytes()


def silence(seconds: float) -> bytes:
    """A pause."""
    return bytes(2 * round(seconds * SAMPLE_RATE_HZ))


def speech(*seconds: float) -> bytes:
    """Speech and pauses in turn, beginning with speech: speech(1.0, 0.8, 2.0)."""
    return b"".join(silence(s) if i % 2 else tone(s, hz=300 + 40 * i) for i, s in enumerate(seconds))


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut data into parts of these sizes; the last size is repeated to the end."""
    at, size = 0, 1
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size
    for start in range(at, len(data), max(1, size)):
        yield data[start : start + max(1, size)]


def fingerprint(audio: Audio) -> str:
    """A text that differs wherever the samples do."""
    return f"{len(audio)} {hashlib.sha256(audio.tobytes()).hexdigest()[:12]}"


def samples_as_text(call: EngineCall) -> str:
    """A text that shows whether the engine got the same audio."""
    return fingerprint(call.audio)


def words_as_they_come(call: EngineCall) -> str:
    """One word for each half second: "one two three"."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    return " ".join(words[: max(1, 2 * len(call.audio) // SAMPLE_RATE_HZ)])
