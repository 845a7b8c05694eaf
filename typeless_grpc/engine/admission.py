"""Who may come in at all: a bound on the calls, and on the audio they hold, before any work is done for them.

Each caller has a share of both (`shares.py`). A refusal says whose fault it is: RateLimited where others would be let
in, Overloaded where nobody is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from typeless_grpc.engine.shares import MAX_SHARE, may_hold, share_is_used_up
from typeless_grpc.errors import Overloaded

RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class AdmissionOptions:
    """max_calls: at once, waiting ones included.

    max_audio_s: decoded audio that all of them and all streams hold together, 64 kB a second.
    """

    max_calls: int = 64
    max_audio_s: float = 4 * 3600.0


@dataclass
class _Held:
    """What one caller has inside."""

    n_calls: int = 0
    n_recordings: int = 0
    audio_s: float = 0.0


class Admission:
    """Counts what is inside. Belongs to one event loop."""

    def __init__(self, options: AdmissionOptions) -> None:
        self._options = options
        self._callers: dict[str, _Held] = {}
        self.streams_s = 0.0  # held by streams, see stream_audio.py
        self.freed: Callable[[], None] = lambda: None  # called when a recording makes room

    @property
    def room_s(self) -> float:
        """How much more audio may be held; negative where one recording alone is over the limit."""
        held_s = sum(one.audio_s for one in self._callers.values())
        return self._options.max_audio_s - held_s - self.streams_s

    @contextmanager
    def call(self, caller: str) -> Iterator[None]:
        """Be inside for the length of a call. Raises Overloaded where the server is full, RateLimited for a share."""
        n_calls = sum(one.n_calls for one in self._callers.values())
        if n_calls >= self._options.max_calls:
            raise Overloaded(
                f"This server has {n_calls} calls at once, its limit. Try again, or another replica.",
                retry_after_s=RETRY_AFTER_S,
            )
        with self._inside(caller) as held:
            if not may_hold(held.n_calls, 1, self._options.max_calls - n_calls):
                raise share_is_used_up(caller, f"{self._options.max_calls} calls at once", RETRY_AFTER_S)
            held.n_calls += 1
            try:
                yield
            finally:
                held.n_calls -= 1

    @contextmanager
    def audio(self, audio_s: float, caller: str) -> Iterator[None]:
        """Hold decoded audio. Raises Overloaded where others hold too much, RateLimited where the caller does.

        One recording alone is always let in; it counts as a caller's share at most, so that others find a rest.
        """
        counted_s = min(audio_s, MAX_SHARE * self._options.max_audio_s)
        is_alone = not any(one.n_recordings for one in self._callers.values())
        free_s = self.room_s
        with self._inside(caller) as held:
            if not is_alone and not may_hold(held.audio_s, counted_s, free_s):
                if held.n_recordings and counted_s <= free_s + held.audio_s:
                    raise share_is_used_up(caller, "held audio", RETRY_AFTER_S)
                raise Overloaded(
                    "The recordings that wait here are too long together. Try again, or another replica.",
                    retry_after_s=RETRY_AFTER_S,
                )
            held.n_recordings += 1
            held.audio_s += counted_s
            try:
                yield
            finally:
                held.n_recordings -= 1
                # Sums of fractions do not come back to nothing by themselves.
                held.audio_s = held.audio_s - counted_s if held.n_recordings else 0.0
                self.freed()

    @contextmanager
    def _inside(self, caller: str) -> Iterator[_Held]:
        """What a caller has inside, which is forgotten with the last of it."""
        held = self._callers.setdefault(caller, _Held())
        try:
            yield held
        finally:
            if not held.n_calls and not held.n_recordings:
                self._callers.pop(caller, None)
