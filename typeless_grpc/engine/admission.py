"""Bounds the calls inside the server and the decoded audio they hold, before any work is done for them.

Each caller has a share of both (`shares.py`). RateLimited says that the caller has used up its share, Overloaded that
the server has no room for anybody. Both name a time after which there is a slot for the caller (`retry_times.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.engine.retry_times import RetryTimes
from typeless_grpc.engine.shares import MAX_SHARE, may_hold, share_is_used_up
from typeless_grpc.errors import Overloaded

RETRY_AFTER_S = 1.0
MAX_KEPT_PART = 0.25  # of the slots, for calls that were refused and are due


@dataclass(frozen=True)
class AdmissionOptions:
    """max_calls: calls at once, waiting ones included.

    max_audio_s: decoded audio of all channels that recordings and streams hold together, 64 kB a second.
    """

    max_calls: int = 64
    max_audio_s: float = 4 * 3600.0


@dataclass
class _Held:
    """The calls and audio of one caller."""

    n_calls: int = 0
    n_recordings: int = 0
    audio_s: float = 0.0


class Admission:
    """Counts admitted calls and held audio. Belongs to one event loop; only `Reservation.grow_to` is thread-safe."""

    def __init__(self, options: AdmissionOptions, clock: Clock | None = None) -> None:
        """clock: of the times to retry; the system's unless given."""
        self._options = options
        self._clock = clock or SystemClock()
        self._retries = RetryTimes()
        self._lock = threading.Lock()
        self._callers: dict[str, _Held] = {}
        self.streams_s = 0.0  # held by streams, see stream_audio.py
        self.freed: Callable[[], None] = lambda: None  # called when a recording makes room

    def use(self, options: AdmissionOptions) -> None:
        """Apply these options from now on. Admitted calls stay, even if they exceed the new bounds."""
        with self._lock:
            self._options = options
        self.freed()

    @property
    def room_s(self) -> float:
        """How much more audio may be held; negative if a single recording exceeds the limit."""
        with self._lock:
            return self._room_s()

    @property
    def held_s(self) -> float:
        """How much audio is held, in seconds of all channels together."""
        with self._lock:
            return self._options.max_audio_s - self._room_s()

    @property
    def n_callers(self) -> int:
        """How many callers have admitted calls or hold audio."""
        return len(self._callers)

    @contextmanager
    def call(self, caller: str) -> Iterator[None]:
        """Admit a call for its duration. Raises Overloaded if the server is full, RateLimited if the share is."""
        with self._lock:
            held = self._checked(caller)
            self._retries.admitted(caller, self._clock.now_s())
            self._callers[caller] = held
            held.n_calls += 1
        try:
            yield
        finally:
            with self._lock:
                held.n_calls -= 1
                self._retries.ended(self._clock.now_s())
                self._forget(caller)

    def check(self, caller: str) -> None:
        """Refuse a call that `call` would refuse now, with the same errors."""
        with self._lock:
            self._checked(caller)

    def _checked(self, caller: str) -> _Held:
        """Return what a caller holds, which may have one more call."""
        now_s = self._clock.now_s()
        n_calls = {name: one.n_calls for name, one in self._callers.items() if one.n_calls}
        n_free = self._options.max_calls - sum(n_calls.values())
        n_kept = n_own = 0
        if n_free > 0 and not self._retries.is_due(caller, now_s):
            most = round(MAX_KEPT_PART * self._options.max_calls)
            n_kept, n_own = (min(n, most) for n in self._retries.n_kept(caller, n_calls, now_s))
        held = self._callers.get(caller, _Held())
        has_share = may_hold(held.n_calls + n_own, 1, n_free - n_own)
        if n_free <= 0 or (has_share and n_free <= n_kept):
            raise Overloaded(
                f"This server has {self._options.max_calls} calls at once, its limit. Try again, or another replica.",
                retry_after_s=self._retries.book(caller, now_s),
            )
        if not has_share:
            retry_after_s = self._retries.book(caller, now_s)
            raise share_is_used_up(caller, f"{self._options.max_calls} calls at once", retry_after_s)
        return held

    @contextmanager
    def audio(self, audio_s: float, caller: str) -> Iterator[None]:
        """Hold audio_s of decoded audio for a recording. Raises what `Reservation.grow_to` raises."""
        reservation = self.reserve(caller)
        try:
            reservation.grow_to(audio_s)
            yield
        finally:
            reservation.close()

    def reserve(self, caller: str) -> Reservation:
        """Return an empty reservation for a recording. The caller must close it."""
        return Reservation(self, caller)

    def hold(self, caller: str, before_s: float, audio_s: float) -> float:
        """Change what a recording holds from before_s to audio_s, and return how much of it counts.

        For `Reservation.grow_to`, which documents the errors.
        """
        # One recording counts as a caller's share at most, so that others find room.
        counted_s = min(audio_s, MAX_SHARE * self._options.max_audio_s)
        with self._lock:
            held = self._callers.get(caller, _Held())
            if counted_s > before_s:
                self._check_audio(caller, held, before_s, counted_s)
                self._callers[caller] = held
                held.n_recordings += before_s == 0.0
            elif not counted_s and before_s:
                held.n_recordings -= 1
            # Sums of fractions do not come back to zero by themselves.
            held.audio_s = held.audio_s + counted_s - before_s if held.n_recordings else 0.0
            self._forget(caller)
        return counted_s

    def _check_audio(self, caller: str, held: _Held, before_s: float, counted_s: float) -> None:
        """Raise Overloaded or RateLimited if a recording may not grow to counted_s. The only one here always may.

        held: what the caller holds, with this recording's before_s in it.
        """
        is_counted = before_s > 0.0  # whether this recording is among those that are counted
        if sum(one.n_recordings for one in self._callers.values()) == is_counted:
            return
        has_others = held.n_recordings > is_counted
        others_s, free_s = (held.audio_s - before_s) * has_others, self._room_s() + before_s
        if may_hold(others_s, counted_s, free_s):
            return
        if has_others and counted_s <= free_s + others_s:
            raise share_is_used_up(caller, "held audio", RETRY_AFTER_S)
        raise Overloaded(
            "The recordings in this server hold as much audio as they may. Try again, or another replica.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _room_s(self) -> float:
        return self._options.max_audio_s - sum(one.audio_s for one in self._callers.values()) - self.streams_s

    def _forget(self, caller: str) -> None:
        held = self._callers.get(caller)
        if held is not None and not held.n_calls and not held.n_recordings:
            del self._callers[caller]


class Reservation:
    """The decoded audio that one recording holds, also while it is decoded."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission, self._caller = admission, caller
        self._counted_s = 0.0

    def grow_to(self, audio_s: float) -> None:
        """Hold audio_s in all, in seconds of all channels together. May be called from any thread.

        Raises Overloaded if the server holds too much, RateLimited if the caller does; the reservation is then
        unchanged. The only recording in the server may be of any length.
        """
        self._counted_s = self._admission.hold(self._caller, self._counted_s, max(audio_s, 0.0))

    def close(self) -> None:
        """Release all of it. Call it in the event loop, once the audio is not in memory any more."""
        if self._counted_s:
            self._counted_s = self._admission.hold(self._caller, self._counted_s, 0.0)
            self._admission.freed()
