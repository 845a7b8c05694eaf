"""What the rest of the server sees of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.transcript import Transcript


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


@dataclass(frozen=True)
class DecodeOptions:
    """What a caller asks of a transcription; None, "" and () leave a value to the engine.

    model: a name of the catalogue. language: Whisper's code ("en", "zh"), None detects it. prompt: text to condition
    on. temperatures: tried in turn until the result passes the quality checks.
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


@dataclass(frozen=True)
class Recognition:
    """A transcript and what it took. queue_s: spent waiting for a free engine. n_chunks: windows decoded."""

    transcript: Transcript
    queue_s: float
    n_chunks: int


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
    the model lacks), NotFound (a model nobody has), Overloaded, DeadlineExceeded or EngineFailed.
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
