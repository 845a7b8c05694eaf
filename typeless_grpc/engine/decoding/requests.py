"""Requests to a model and their results: plain values, without the model.

`chunk_decoder.py` makes requests, the scheduler puts those with equal keys into batches, and
`inference.py` runs the batches.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.quality import Issue
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.model import DecodingTask, Model, RawSegment
from typeless_grpc.speech.languages import Languages


@dataclass(frozen=True, eq=False)
class Window:
    """Audio to decode: float32, mono, 16 kHz, at most 30 s. speech: where speech is in it, in samples."""

    audio: Audio
    speech: tuple[Span, ...]

    @property
    def audio_s(self) -> float:
        """Its length in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ

    @property
    def speech_s(self) -> float:
        """How much speech it holds, in seconds."""
        return sum(span.end - span.start for span in self.speech) / SAMPLE_RATE_HZ

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """Start and end of each span of speech, in seconds; the whole window if no speech is known."""
        spans = [(span.start / SAMPLE_RATE_HZ, span.end / SAMPLE_RATE_HZ) for span in self.speech]
        return spans or [(0.0, self.audio_s)]


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """Search once for a window's text.

    options.language: None detects it. expected_language: the language of the speech before this window, "" if unknown.
    silence_s: how much silence is encoded after the audio. max_tokens: limit of the text; None is as many as speech can
    have.
    """

    window: Window
    options: DecodeOptions
    beam_size: int
    silence_s: float
    expected_language: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class DetectRequest:
    """Detect a window's language. The fields are those of DecodeRequest."""

    window: Window
    options: DecodeOptions
    silence_s: float
    expected_language: str = ""


@dataclass(frozen=True, eq=False)
class FallbackRequest:
    """Decode a window as faster-whisper does, with temperatures in order until its checks pass."""

    window: Window
    options: DecodeOptions
    beam_size: int
    temperatures: Sequence[float]
    expected_language: str = ""


Request = DecodeRequest | DetectRequest | FallbackRequest


@dataclass(frozen=True)
class DecodeResult:
    """The segments that a model returned for a window, with the result of the quality checks.

    segments: times in seconds of the window. looped: repetitions that were removed because nobody spoke them.
    languages: as detected; empty if the language was given. issues: why the text may be wrong. uncovered_from_s: where
    the speech begins that the text leaves out; None if it covers all. n_tokens: length of the hypothesis.
    """

    segments: tuple[RawSegment, ...]
    language: str
    language_probability: float
    languages: Languages = ()
    looped: tuple[RawSegment, ...] = ()
    issues: frozenset[Issue] = frozenset()
    uncovered_from_s: float | None = None
    n_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of all segments."""
        return " ".join(one.segment.text for one in self.segments)

    @property
    def avg_logprob(self) -> float:
        """The mean log probability of the least likely segment; minus infinity without text."""
        return min((one.avg_logprob for one in self.segments), default=-math.inf)


def task_of(options: DecodeOptions, language: str) -> DecodingTask:
    """Return the decoder's part of the options."""
    return DecodingTask(language, options.task, options.prompt, tuple(options.hotwords))


def batch_key(model: Model, request: Request) -> Hashable:
    """Return the batch key of a request: those with equal keys can run in one batch, whatever their calls."""
    match request:
        case FallbackRequest():
            return (model.name, object())
        case DetectRequest():
            return (model.name, "language")
        case DecodeRequest():
            task = task_of(request.options, request.options.language or "en")
            n_positions = model.n_positions(request.window.audio_s, request.silence_s)
            return (model.name, n_positions, request.beam_size, model.n_prompt_tokens(task))
