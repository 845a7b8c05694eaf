"""What the engine needs of a speech recognition model, and the values that pass between the two.

`Model` is the protocol that a runtime implements; `engine/whisper.py` implements it with CTranslate2. The engine
decides what is decoded when, in which language, and what is decoded again; a model encodes, detects, decodes and
aligns. All methods block for as long as the work takes, and are safe to call from several threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.interface import Task
from typeless_grpc.speech.languages import Languages
from typeless_grpc.speech.transcript import Segment

# The longest audio that Whisper's encoder takes at once (arXiv:2212.04356, section 2.1), and what it makes of a second.
FULL_WINDOW_S = 30.0
POSITIONS_PER_S = 50
FULL_POSITIONS = 1500

# faster_whisper.transcribe.WhisperModel.transcribe, default of `temperature`: tried in turn until the checks pass.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Likewise `no_speech_threshold`: above it, and below `log_prob_threshold`, a text is taken for silence.
NO_SPEECH_THRESHOLD = 0.6


@dataclass(frozen=True)
class DecodingTask:
    """What the decoder is asked to write. prompt: text to condition on. hotwords: names that may occur."""

    language: str
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    hotwords: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder output for a stretch of audio.

    positions: shape (n_positions, d_model), 50 a second; after those of the audio follow positions of silence, as many
    as the decoder needs. audio_s: length of the audio itself.
    """

    positions: npt.NDArray[Any]
    audio_s: float


@dataclass(frozen=True)
class Hypothesis:
    """The text that a search returned.

    tokens: of the text alone. avg_logprob: over them and the end of text. is_cut_off: the search reached its limit of
    tokens before the end of text, which speech does not.
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
class RawSegment:
    """A segment as the model wrote it, before any filter. Times in seconds of the audio that was decoded."""

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
        """Whether it knows more than English."""
        ...

    @property
    def languages(self) -> Sequence[str]:
        """The languages it has a token for."""
        ...

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """How many positions `encode` returns for so much audio: only equal lengths can be decoded together."""
        ...

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """How long the decoder's prompt is: only equal lengths can be decoded together."""
        ...

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """Encode audio, followed by so much silence that the encoder computes."""
        ...

    def detect_language(self, encoded: Encoded) -> Languages:
        """Every language and its probability in [0, 1], the likeliest first."""
        ...

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """Decode encoder outputs of one length, with prompts of one length. max_tokens: of each text."""
        ...

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """The words of a text and their times in seconds, which lie in the audio that was encoded."""
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
        """Decode as faster-whisper does: 30 s windows, timestamps, and temperatures in turn until its checks pass.

        is_wanted: asked before each temperature; None is returned once it says no.
        """
        ...
