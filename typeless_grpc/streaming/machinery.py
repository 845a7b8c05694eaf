"""What a stream is told, what it is made of, and what all streams share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum

from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.clock import Clock
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Engine
from typeless_grpc.engine.stream_audio import StreamAudio
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.session import Rules


class Control(Enum):
    """What a caller asks for in the middle of the audio."""

    FINALIZE = "finalize"
    KEEP_ALIVE = "keep_alive"
    END = "end"


@dataclass(frozen=True)
class Update:
    """New options from the next utterance on. rules: what they come to for cutting, the server's choices filled in.

    asked: how the caller said it; comes back with `Configured`.
    """

    options: DecodeOptions
    rules: Rules
    asked: object = None


Request = bytes | Control | Update


@dataclass(frozen=True)
class StreamOptions:
    """What one stream is. rules: of LIVE or FILE mode. interim_interval_s: None for no interims.

    caller: whose turn its work takes. The rest are bounds: of audio in all, of requests waiting (bytes), of audio held
    (seconds), of the engine's backlog with which a FILE goes on to be taken, of events that nobody has read, of FILE
    pieces at the engine at once; idle_timeout_s: without a request.
    """

    options: DecodeOptions
    rules: Rules
    interim_interval_s: float | None = None
    first_interim_s: float = 0.6
    caller: str = ""
    max_audio_s: float = 4 * 3600.0
    max_waiting_bytes: int = 1 << 20
    max_held_s: float = 360.0
    max_backlog_s: float = 7.5
    max_unread_events: int = 256
    max_pieces_at_once: int = 16
    idle_timeout_s: float = 60.0

    @property
    def is_file(self) -> bool:
        """Whether this is FILE mode."""
        return isinstance(self.rules, PlanOptions)

    @property
    def cadence(self) -> Cadence | None:
        """When interims are due; None for none."""
        if self.is_file or self.interim_interval_s is None:
            return None
        return Cadence(self.interim_interval_s, self.first_interim_s)


class InterimPlaces:
    """How many interims of all streams may be at the engine; the others take turns.

    Few, because what runs there cannot be stopped for a final that comes.
    """

    def __init__(self, n: int = 2) -> None:
        self._n_free = n
        self._asking: dict[Callable[[], None], None] = {}  # in the order of asking

    def take(self, ask: Callable[[], None]) -> bool:
        """Take a place, if there is one; else `ask` is called once there is."""
        if self._n_free:
            self._n_free -= 1
            return True
        self._asking[ask] = None
        return False

    def give_back(self) -> None:
        """Leave a place to the next who still wants it."""
        self._n_free += 1
        while self._n_free and self._asking:
            ask = next(iter(self._asking))
            del self._asking[ask]
            ask()


@dataclass(frozen=True)
class Machinery:
    """What all streams share. off_loop: threads for longer computations. audio: what they may hold together."""

    engine: Engine
    detector: VoiceActivityDetector
    off_loop: Executor
    clock: Clock
    interim_places: InterimPlaces = field(default_factory=InterimPlaces)
    audio: StreamAudio = field(default_factory=lambda: StreamAudio(Admission(AdmissionOptions())))
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
