"""What a stream is configured with, what it depends on, and what all streams share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.clock import Clock
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Engine
from typeless_grpc.engine.stream_audio import StreamAudio
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.observer import NoStreamObserver, StreamObserver
from typeless_grpc.streaming.requests import SegmentationOptions


@dataclass(frozen=True)
class StreamOptions:
    """The configuration of one stream.

    segmentation: its type chooses the mode, LIVE or FILE. interim_interval_s: None for no interims, as in FILE mode.
    caller: the caller to whom the inference queue charges the decodes. max_audio_s: length of the stream.
    max_waiting_bytes: requests that the stream has not processed yet. max_held_s: audio whose final is pending.
    max_backlog_s: backlog of the engine from which on FILE mode takes no more audio. max_unread_events: events that the
    caller has not read. max_chunks_at_once: chunks of a FILE stream in the engine. idle_timeout_s: time without a
    request.
    """

    options: DecodeOptions
    segmentation: SegmentationOptions
    interim_interval_s: float | None = None
    first_interim_s: float = 0.6
    caller: str = ""
    max_audio_s: float = 4 * 3600.0
    max_waiting_bytes: int = 1 << 20
    max_held_s: float = 360.0
    max_backlog_s: float = 7.5
    max_unread_events: int = 256
    max_chunks_at_once: int = 16
    idle_timeout_s: float = 60.0

    @property
    def cadence(self) -> Cadence | None:
        """When interims are due; None if the stream has no interims."""
        return Cadence(self.interim_interval_s, self.first_interim_s) if self.interim_interval_s is not None else None


class InterimSlots:
    """Bounds how many interims of all streams are in the engine; the rest take turns.

    The bound is low, because a running decode cannot be stopped when a final arrives.
    """

    def __init__(self, n: int = 2) -> None:
        self._n_free = n
        self._waiting: dict[Callable[[], None], None] = {}  # first come, first served

    def acquire(self, on_free: Callable[[], None]) -> bool:
        """Take a slot and return True if one is free; otherwise call on_free once one may be."""
        if self._n_free:
            self._n_free -= 1
            return True
        self._waiting[on_free] = None
        return False

    def release(self) -> None:
        """Return a slot, and offer it to those that wait."""
        self._n_free += 1
        while self._n_free and self._waiting:
            on_free = next(iter(self._waiting))
            del self._waiting[on_free]
            on_free()


@dataclass(frozen=True)
class Dependencies:
    """What all streams share. threads: for longer computations. audio: bounds the audio that they hold together."""

    engine: Engine
    detector: VoiceActivityDetector
    threads: Executor
    clock: Clock
    interim_slots: InterimSlots = field(default_factory=InterimSlots)
    audio: StreamAudio = field(default_factory=lambda: StreamAudio(Admission(AdmissionOptions())))
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    observer: StreamObserver = field(default_factory=NoStreamObserver)
