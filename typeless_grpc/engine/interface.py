"""The engine as the rest of the server sees it: the `Engine` protocol, its options and its results.

Servicers, streams and jobs call an `Engine`; `engine/recognizer.py` implements it. This module imports values only, so
any layer above the engine may use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from typeless_grpc.audio.formats import Audio
from typeless_grpc.speech.transcript import OutputFormat, Transcript


class Task(Enum):
    """Write the speech in its own language, or translate it to English."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


@dataclass(frozen=True)
class VoiceActivityOptions:
    """How speech is separated from silence; None leaves a value to the engine.

    threshold: in (0, 1), a frame at or above it is speech. end_silence_s: a pause of this length ends an utterance.
    speech_padding_s: audio kept on both sides of speech. max_utterance_s: longer utterances are cut without a pause.
    """

    threshold: float | None = None
    end_silence_s: float | None = None
    speech_padding_s: float | None = None
    max_utterance_s: float | None = None


class Chunking(Enum):
    """How a recording is cut into chunks that the model can take; the contract's ChunkingStrategy describes each."""

    AUTO = "auto"
    WHOLE = "whole"
    FIXED = "fixed"
    VAD = "vad"
    HYBRID = "hybrid"


class Script(Enum):
    """The script of Chinese text, as BCP-47 subtags."""

    SIMPLIFIED = "Hans"
    TRADITIONAL = "Hant"


class Mode(Enum):
    """How much post-processing is applied to the text."""

    NONE = "none"
    BASIC = "basic"  # removes repeated words and extra spaces
    STANDARD = "standard"  # also removes fillers, and formats numbers, dates and units


@dataclass(frozen=True)
class PostProcessing:
    """What is done to the text. replacements: whole words in any case, to their replacements; applied last."""

    mode: Mode = Mode.NONE
    replacements: Mapping[str, str] = field(default_factory=dict)
    mask_profanity: bool = False

    @property
    def is_requested(self) -> bool:
        """Whether any step applies."""
        return self.mode is not Mode.NONE or self.mask_profanity or bool(self.replacements)


@dataclass(frozen=True)
class DecodeOptions:
    """A caller's options for one transcription; None, "" and () leave a value to the engine.

    model: a name from the catalogue. language: Whisper's code ("en", "zh"); None detects it, among allowed_languages if
    there are any. expected_language: the language of the speech before this; a detected language replaces it only with
    high confidence. script: of Chinese; None is simplified. prompt: text that conditions the model. temperatures: tried
    in order, as faster-whisper does, until the text passes its quality checks. separate_channels: transcribe each
    channel on its own. output_formats: the renditions of a whole recording.
    """

    model: str = ""
    language: str | None = None
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    hotwords: Sequence[str] = ()
    word_timestamps: bool = False
    beam_size: int | None = None
    temperatures: Sequence[float] = ()
    voice_activity: VoiceActivityOptions = field(default_factory=VoiceActivityOptions)
    allowed_languages: Sequence[str] = ()
    expected_language: str = ""
    script: Script | None = None
    chunking: Chunking = Chunking.AUTO
    separate_channels: bool = False
    post_processing: PostProcessing = field(default_factory=PostProcessing)
    output_formats: Sequence[OutputFormat] = ()


@dataclass(frozen=True)
class Recognition:
    """A transcript, and how it was made.

    queue_s: time in which none of the call's work ran. n_chunks: chunks decoded. chunking: the strategy used, never
    AUTO.
    """

    transcript: Transcript
    queue_s: float
    n_chunks: int
    chunking: Chunking = Chunking.WHOLE


class Lane(IntEnum):
    """The priority of work: lower lanes go first, and no lane starves."""

    LIVE_FINAL = 0
    LIVE_INTERIM = 1
    UNARY = 2
    BATCH = 3
    JOBS = 4


@dataclass(frozen=True)
class Ticket:
    """How a call is scheduled.

    caller: work of one lane is shared fairly between callers; "" for none in particular. deadline_s: the moment on the
    engine's clock by which the result is needed; None for no deadline.
    """

    lane: Lane = Lane.UNARY
    caller: str = ""
    deadline_s: float | None = None


class Engine(Protocol):
    """Turns samples into text. Cancelling the awaiting task stops the work.

    Both calls take audio as float32, shape (n_samples,), mono 16 kHz, in [-1, 1]. They raise InvalidInput (the model
    lacks the language), NotFound (no such model), Overloaded, RateLimited (the caller has used its share of the queue),
    DeadlineExceeded or EngineFailed. `transcribe` also takes shape (n_channels, n_samples), and transcribes each
    channel on its own.
    """

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe a recording of any length: find its speech, cut it into chunks, decode them in parallel."""
        ...

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance of at most 30 s without cutting it."""
        ...

    @property
    def backlog_s(self) -> float:
        """How long new work would wait now, in seconds, estimated from the measured speed; 0 for an idle engine."""
        ...

    @property
    def stalled_s(self) -> float:
        """Seconds since work last finished, while there is work; 0 for an idle engine, infinite for a broken one."""
        ...
