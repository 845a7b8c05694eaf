"""Who may come in at all: a bound on the calls, and on the audio they hold, before any work is done for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from typeless_grpc.errors import Overloaded

RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class AdmissionOptions:
    """max_calls: at once, waiting ones included.

    max_audio_s: decoded audio that all of them and all streams hold together, 64 kB a second.
    """

    max_calls: int = 64
    max_audio_s: float = 4 * 3600.0


class Admission:
    """Counts what is inside. Belongs to one event loop."""

    def __init__(self, options: AdmissionOptions) -> None:
        self._options = options
        self._n_calls = 0
        self._n_recordings = 0
        self._audio_s = 0.0
        self.streams_s = 0.0  # held by streams, see stream_audio.py
        self.freed: Callable[[], None] = lambda: None  # called when a recording makes room

    @property
    def room_s(self) -> float:
        """How much more audio may be held; negative where one recording alone is over the limit."""
        return self._options.max_audio_s - self._audio_s - self.streams_s

    @contextmanager
    def call(self) -> Iterator[None]:
        """Be inside for the length of a call. Raises Overloaded where the server is full."""
        if self._n_calls >= self._options.max_calls:
            raise Overloaded(
                f"This server has {self._n_calls} calls at once, its limit. Try again, or another replica.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._n_calls += 1
        try:
            yield
        finally:
            self._n_calls -= 1

    @contextmanager
    def audio(self, audio_s: float) -> Iterator[None]:
        """Hold decoded audio. Raises Overloaded where others hold too much; one recording alone is always let in."""
        if self._n_recordings and audio_s > self.room_s:
            raise Overloaded(
                "The recordings that wait here are too long together. Try again, or another replica.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._n_recordings += 1
        self._audio_s += audio_s
        try:
            yield
        finally:
            self._n_recordings -= 1
            # Sums of fractions do not come back to nothing by themselves.
            self._audio_s = self._audio_s - audio_s if self._n_recordings else 0.0
            self.freed()
