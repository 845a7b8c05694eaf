"""The `Model` protocol: what the engine needs of a speech recognition model; and the values that both exchange.

`Model` is the protocol that a runtime implements; `engine/whisper.py` implements it with CTranslate2. The engine
decides when and in which language audio is decoded, and what is decoded again. A model encodes, detects languages,
decodes and aligns. All methods block while they compute, and may be called from several threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import Task
from typeless_grpc.speech.languages import Languages
from typeless_grpc.speech.transcript import Segment

# The longest audio that Whisper's encoder takes at once (arXiv:2212.04356, section 2.1), and its output positions.
FULL_WINDOW_S = 30.0
POSITIONS_PER_S = 50
FULL_POSITIONS = 1500

# Defaults of faster_whisper.transcribe.WhisperModel.transcribe. Temperatures are tried in order until the text passes
# the checks. A text is taken for silence above NO_SPEECH_THRESHOLD and below LOG_PROB_THRESHOLD.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NO_SPEECH_THRESHOLD = 0.6
LOG_PROB_THRESHOLD = -1.0
COMPRESSION_RATIO_THRESHOLD = 2.4


@dataclass(frozen=True)
class DecodingTask:
    """What the decoder writes. prompt: text that conditions it. hotwords: names that may occur."""

    language: str
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    hotwords: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder output for one window.

    positions: shape (n_positions, d_model), 50 a second; positions of silence follow those of the audio, as many as the
    decoder needs. audio_s: length of the audio itself.
    """

    positions: npt.NDArray[Any]
    audio_s: float


@dataclass(frozen=True)
class Hypothesis:
    """The text that a search returned, with its scores.

    tokens: of the text alone. avg_logprob: over the tokens and the end of text. is_cut_off: the search reached its
    limit of tokens before the end of text.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    avg_logprob: float = 0.0
    no_speech_probability: float = 0.0
    is_cut_off: bool = False

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return min(1.0, math.exp(self.avg_logprob))


@dataclass(frozen=True)
class TimedWord:
    """A word as the model wrote it, with its leading space; times in seconds of the window."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class RawSegment:
    """A segment before any filter; times in seconds of the window."""

    segment: Segment
    avg_logprob: float
    compression_ratio: float


class Model(Protocol):
    """A loaded model. Languages are Whisper's codes; audio is float32, mono, 16 kHz, at most 30 s."""

    @property
    def name(self) -> str: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def device_name(self) -> str: ...

    @property
    def compute_type(self) -> str: ...

    @property
    def is_multilingual(self) -> bool:
        """Whether it knows languages other than English."""
        ...

    @property
    def languages(self) -> Sequence[str]:
        """The languages it has a token for."""
        ...

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """Return how many positions `encode` returns; only encoder outputs of one length can be decoded together."""
        ...

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """Return the length of the decoder's prompt; only prompts of one length can be decoded together."""
        ...

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """Encode audio, followed by this much computed silence."""
        ...

    def detect_language(self, encoded: Encoded) -> Languages:
        """Return every language and its probability in [0, 1], the likeliest first."""
        ...

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """Decode encoder outputs of one length, with prompts of one length. max_tokens: of each text."""
        ...

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """Return the words of a text with their times."""
        ...

    def decode_with_fallback(
        self,
        audio: Audio,
        task: DecodingTask,
        *,
        beam_size: int,
        temperatures: Sequence[float],
        word_timestamps: bool,
        is_wanted: Callable[[], bool],
    ) -> list[RawSegment] | None:
        """Decode as faster-whisper does: 30 s windows, timestamps, and temperatures in order until its checks pass.

        is_wanted: called before each temperature; when it returns False, decoding stops and returns None.
        """
        ...
