"""The audio that all streams hold. It shares its limit with the recordings of calls (`admission.py`).

A stream that finds no room waits, and HTTP/2 flow control stops its caller. If all streams waited, each in the middle
of an utterance, none could finish. So the first of them may exceed the limit until it releases something. The bound is
thus the limit plus what one stream may hold.
"""

from __future__ import annotations

import asyncio
from collections import deque

from typeless_grpc.engine.admission import RETRY_AFTER_S, Admission
from typeless_grpc.errors import Overloaded

BYTES_PER_S = 64_000  # of decoded audio: 16,000 samples of 4 bytes


class StreamAudio:
    """Counts what streams hold, in bytes. Belongs to one event loop."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waiting: deque[tuple[Holding, int, asyncio.Future[None]]] = deque()
        self._may_exceed: Holding | None = None
        self.n_bytes = 0
        admission.freed = self._let_in

    def check(self) -> None:
        """Refuse a new stream while open ones wait for room. Raises Overloaded."""
        if self._admission.room_s <= 0 or any(not turn.done() for _, _, turn in self._waiting):
            raise Overloaded(
                "The streams and recordings here hold as much audio as they may. Try again, or another replica.",
                retry_after_s=RETRY_AFTER_S,
            )

    async def take(self, holding: Holding, n_bytes: int) -> None:
        """Count n_bytes more once there is room; streams that wait are served in order."""
        if self._may_exceed is holding or (not self._waiting and self._fits(n_bytes)):
            self.count(holding, n_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holding, n_bytes, turn))
        self._let_in()
        await turn

    def count(self, holding: Holding, n_bytes: int) -> None:
        """Count n_bytes more, or less if negative, whether there is room or not."""
        holding.n_bytes += n_bytes
        self.n_bytes += n_bytes
        self._admission.streams_s = self.n_bytes / BYTES_PER_S
        if n_bytes < 0:
            self._let_in()

    def end_exceeding(self, holding: Holding) -> None:
        """Let the next stream exceed the limit, if this one might: it has released something."""
        if self._may_exceed is holding:
            self._may_exceed = None
            self._let_in()

    def _fits(self, n_bytes: int) -> bool:
        return n_bytes <= self._admission.room_s * BYTES_PER_S

    def _let_in(self) -> None:
        while self._waiting:
            holding, n_bytes, turn = self._waiting[0]
            if not turn.done():  # done where the stream was closed meanwhile
                if not self._fits(n_bytes):
                    if self._may_exceed is not None:
                        return
                    self._may_exceed = holding
                self.count(holding, n_bytes)
                turn.set_result(None)
            self._waiting.popleft()


class Holding:
    """The audio that one stream holds."""

    def __init__(self, audio: StreamAudio) -> None:
        self._audio = audio
        self.n_bytes = 0
        self.is_waiting = False

    async def grow(self, n_bytes: int) -> None:
        """Hold n_bytes more once there is room."""
        self.is_waiting = True
        try:
            await self._audio.take(self, n_bytes)
        finally:
            self.is_waiting = False

    def count(self, n_bytes: int) -> None:
        """Hold n_bytes more, or less if negative, at once: for memory that another bound limits."""
        self._audio.count(self, n_bytes)

    def shrink(self, n_bytes: int) -> None:
        """Release n_bytes that `grow` had taken."""
        self._audio.count(self, -n_bytes)
        self._audio.end_exceeding(self)

    def close(self) -> None:
        """Release everything."""
        self.shrink(self.n_bytes)
