"""The pending requests of one stream, bounded in bytes; and when to stop waiting for more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from typeless_grpc.clock import Clock
from typeless_grpc.engine.stream_audio import Holding
from typeless_grpc.errors import DeadlineExceeded
from typeless_grpc.streaming.requests import Control, Request

_REQUEST_BYTES = 1024  # what a request counts besides its audio, so that empty ones cannot fill the queue


class Inbox:
    """A queue of requests, first in, first out. held: the audio that the stream holds; it counts the queued bytes."""

    def __init__(self, held: Holding, max_bytes: int) -> None:
        self._held, self._max_bytes = held, max_bytes
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._n_bytes = 0
        self.acknowledged_bytes = 0  # of audio that was put

    @property
    def is_full(self) -> bool:
        """Whether the next request must wait."""
        return self._n_bytes >= self._max_bytes

    @property
    def is_empty(self) -> bool:
        """Whether all requests are done."""
        return not self._n_bytes and self._requests.empty()

    def put(self, request: Request) -> None:
        """Append a request."""
        self._count(_weight(request))
        self._requests.put_nowait(request)
        if isinstance(request, bytes):
            self._count_audio(request)

    def end(self) -> None:
        """Append the end of the audio, which takes no room."""
        self._requests.put_nowait(Control.END)

    def _count_audio(self, data: bytes) -> None:
        """Note audio that was put. Here it is acknowledged at once."""
        self.acknowledged_bytes += len(data)

    async def get(self) -> Request:
        """Remove the oldest request, once there is one. `done` must follow."""
        return await self._requests.get()

    def done(self, request: Request) -> None:
        """Free the room of a request that has been processed."""
        self._count(-_weight(request))

    def _count(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self._held.count(n_bytes)


def _weight(request: Request) -> int:
    return _REQUEST_BYTES + (len(request) if isinstance(request, bytes) else 0)


@dataclass(frozen=True)
class DrainTimes:
    """When the audio ends in a drain: from short_s on in any pause, at by_s even within speech."""

    short_s: float
    by_s: float

    @classmethod
    def starting(cls, now_s: float, within_s: float) -> DrainTimes:
        """Return the times of a drain that starts now."""
        return cls(short_s=now_s + within_s / 2, by_s=now_s + within_s)

    def may_cut(self, now_s: float, *, is_speaking: bool, is_quiet: bool) -> bool:
        """Whether the audio may end now."""
        return not is_speaking or (is_quiet and now_s >= self.short_s)


class Idleness(Enum):
    """How long a caller has sent nothing."""

    NONE = "none"
    NEARLY = "nearly"  # the stream ends soon; reported once
    OVER = "over"


class IdleTimer:
    """Measures how long the caller has sent nothing. The time in which a request is being taken does not count."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock, self.timeout_s = clock, timeout_s
        self._since_s = clock.now_s()
        self._n_busy = 0
        self._is_warned = False

    @property
    def idle_s(self) -> float:
        """Seconds since the last request."""
        return self._clock.now_s() - self._since_s

    def restart(self) -> None:
        """Restart the timer."""
        self._since_s, self._is_warned = self._clock.now_s(), False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Stop the timer while a request is taken, and restart it afterwards."""
        self._n_busy += 1
        try:
            yield
        finally:
            self._n_busy -= 1
            self.restart()

    def warning(self) -> DeadlineExceeded:
        """Return the warning for a caller whose idle time is nearly over."""
        message = (
            f"Nothing was sent for {self.idle_s:.0f} s. The stream ends after {self.timeout_s:.0f} s without a request."
        )
        return DeadlineExceeded(message, reason="STREAM_IDLE")

    def check(self) -> Idleness:
        """Return how idle the caller is."""
        if self._n_busy:
            return Idleness.NONE
        if self.idle_s >= self.timeout_s:
            return Idleness.OVER
        if self.idle_s >= self.timeout_s - min(10.0, self.timeout_s / 2) and not self._is_warned:
            self._is_warned = True
            return Idleness.NEARLY
        return Idleness.NONE
