"""What the rest of the server sees of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from typeless_grpc.audio.formats import Audio
from typeless_grpc.speech.transcript import OutputFormat, Transcript


class Task(Enum):
    """What becomes of the speech: text in its own language, or in English."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


@dataclass(frozen=True)
class VoiceActivity:
    """How speech is told from silence; None leaves a value to the engine.

    threshold: in (0, 1), a frame at or above it is speech. end_silence_s: a pause this long ends an utterance.
    speech_padding_s: kept on both sides of speech. max_utterance_s: an utterance is cut here even without a pause.
    """

    threshold: float | None = None
    end_silence_s: float | None = None
    speech_padding_s: float | None = None
    max_utterance_s: float | None = None


class Chunking(Enum):
    """How a recording longer than the model's window is cut; the contract's ChunkingStrategy says what each does."""

    AUTO = "auto"
    WHOLE = "whole"
    FIXED = "fixed"
    VAD = "vad"
    HYBRID = "hybrid"


class Script(Enum):
    """How Chinese is written: BCP-47's script subtags."""

    SIMPLIFIED = "Hans"
    TRADITIONAL = "Hant"


class Mode(Enum):
    """How far the text is tidied."""

    NONE = "none"
    BASIC = "basic"  # repeated words and stray spaces
    STANDARD = "standard"  # and fillers, numbers, dates, units


@dataclass(frozen=True)
class PostProcessing:
    """What is done with the text. replacements: whole words in any case, to what is written instead; applied last."""

    mode: Mode = Mode.NONE
    replacements: Mapping[str, str] = field(default_factory=dict)
    mask_profanity: bool = False

    @property
    def is_asked(self) -> bool:
        """Whether there is anything to do."""
        return self.mode is not Mode.NONE or self.mask_profanity or bool(self.replacements)


@dataclass(frozen=True)
class DecodeOptions:
    """What a caller asks of a transcription; None, "" and () leave a value to the engine.

    model: a name of the catalogue. language: Whisper's code ("en", "zh"), None detects it, among allowed_languages
    where there are any. expected_language: what speech before this was in; this is taken to be in it too unless it
    clearly is not. script: of Chinese, None is simplified. prompt: text to condition on. temperatures: tried in
    turn as faster-whisper tries them, until the result passes its quality checks. separate_channels: each channel on
    its own, as `Engine` is given it. output_formats: the renditions to make of a whole recording.
    """

    model: str = ""
    language: str | None = None
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    hotwords: Sequence[str] = ()
    word_timestamps: bool = False
    beam_size: int | None = None
    temperatures: Sequence[float] = ()
    voice_activity: VoiceActivity = field(default_factory=VoiceActivity)
    allowed_languages: Sequence[str] = ()
    expected_language: str = ""
    script: Script | None = None
    chunking: Chunking = Chunking.AUTO
    separate_channels: bool = False
    post_processing: PostProcessing = field(default_factory=PostProcessing)
    output_formats: Sequence[OutputFormat] = ()


@dataclass(frozen=True)
class Recognition:
    """A transcript and what it took.

    queue_s: spent waiting for a free engine. n_chunks: windows decoded. chunking: the strategy that was used.
    """

    transcript: Transcript
    queue_s: float
    n_chunks: int
    chunking: Chunking = Chunking.WHOLE


class Lane(IntEnum):
    """How urgent work is; a lower lane goes first, and none starves."""

    LIVE_FINAL = 0
    LIVE_INTERIM = 1
    UNARY = 2
    BATCH = 3
    JOBS = 4


@dataclass(frozen=True)
class Ticket:
    """Whose work it is, and how urgent.

    caller: who shares fairly with whom within a lane, "" for nobody in particular. deadline_s: the moment on the
    engine's clock by which the answer must be ready, None where the caller waits as long as it takes.
    """

    lane: Lane = Lane.UNARY
    caller: str = ""
    deadline_s: float | None = None


class Engine(Protocol):
    """Turns samples into text. Cancelling the awaiting task stops the work.

    Both calls take audio as float32, shape (n_samples,), mono 16 kHz, in [-1, 1], and raise InvalidInput (a language
    the model lacks), NotFound (a model nobody has), Overloaded, RateLimited (the caller has its share of the engine's
    queue), DeadlineExceeded or EngineFailed. `transcribe` also takes shape (n_channels, n_samples), and transcribes
    each channel on its own.
    """

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe a recording of any length: its speech is found, cut into windows, and decoded side by side."""
        ...

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance of at most 30 s as it is: the caller has found the speech, nothing is cut."""
        ...

    @property
    def backlog_s(self) -> float:
        """How long work that came now would wait, in seconds, by the measured speed; 0 for an idle engine."""
        ...

    @property
    def stalled_s(self) -> float:
        """Seconds since work last ended, while there is some; 0 for an idle engine, infinite for a broken one."""
        ...
