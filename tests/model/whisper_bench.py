"""Requests to a real model, and short ways to read its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.harness import AUDIO, fixture
from typeless_grpc.app.models import catalog
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.vad import Span
from typeless_grpc.config import Settings
from typeless_grpc.engine.decoding.inference import run
from typeless_grpc.engine.decoding.requests import (
    DecodeRequest,
    DecodeResult,
    FallbackRequest,
    Request,
    Window,
)
from typeless_grpc.engine.device import Device, choose_device
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.model import TEMPERATURES, Model
from typeless_grpc.engine.whisper import WhisperModel

MODEL = "tiny.en"
DEVICE: Device = choose_device("cpu", "auto")
ENGLISH = DecodeOptions(language="en")
TIMED = replace(ENGLISH, word_timestamps=True)
SENTENCES = ("en_short.flac", "en_numbers.ogg", "en_two_sentences.flac", "en_names.ogg")
SILENCE_S = 1.0
SHORT = fixture("en_short.flac")["text"].rstrip(".")


def load(name: str = MODEL, *, is_calibrated: bool = True) -> WhisperModel:
    directory = catalog(Settings()).find(name)
    if directory is None:
        pytest.skip(f"no model here: typeless models pull {name}")
    return WhisperModel(name, directory, DEVICE, n_threads=2, is_calibrated=is_calibrated)


def speech(file: str) -> Audio:
    return decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(120.0)).samples


def window(samples: Audio) -> Window:
    return Window(samples, (Span(0, len(samples)),))


def request(
    file: str, options: DecodeOptions = ENGLISH, *, beam_size: int = 1, silence_s: float = SILENCE_S
) -> DecodeRequest:
    return DecodeRequest(window(speech(file)), options, beam_size, silence_s)


def silence(n_samples: int, options: DecodeOptions = ENGLISH) -> DecodeRequest:
    return DecodeRequest(Window(np.zeros(n_samples, np.float32), ()), options, 1, SILENCE_S)


def with_fallback(one: DecodeRequest, temperatures: tuple[float, ...] = TEMPERATURES) -> FallbackRequest:
    return FallbackRequest(one.window, one.options, one.beam_size, temperatures)


def decoded(model: Model, *requests: Request) -> list[DecodeResult]:
    results = run(model, requests, [lambda: True] * len(requests))
    assert None not in results
    return [one for one in results if one is not None]


def text(result: DecodeResult) -> str:
    return " ".join(one.segment.text for one in result.segments)


def plain(result: DecodeResult) -> str:
    """The text without the full stop, which depends on the silence behind the speech."""
    return text(result).rstrip(".")


class Replaced:
    """A model whose `generate` is another one."""

    def __init__(self, real: Any, generate: Callable[..., Any]) -> None:
        self._real, self.generate = real, generate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def with_generate(model: WhisperModel, monkeypatch: pytest.MonkeyPatch, generate: Callable[..., Any]) -> None:
    """Let this be called in place of CTranslate2's own, by faster-whisper, too."""
    replaced = Replaced(model.runtime.model, generate)
    monkeypatch.setattr(model.runtime, "model", replaced)
    monkeypatch.setattr(model.runtime.whisper, "model", replaced)


@dataclass(frozen=True)
class Generated:
    """What a search of CTranslate2 returns: one text."""

    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float = 0.0
