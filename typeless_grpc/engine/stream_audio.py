"""What all streams hold of the audio that the server may hold, shared with the recordings of calls (`admission.py`).

A stream that finds no room waits, which flow control passes on to its caller. Streams that all wait could wait for one
another, each in the middle of an utterance: so the first of them has a pass, and takes what it needs without room until
it has let go of something. What is held is thus bounded by the limit and what one stream may hold.
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
        self._has_pass: Holding | None = None
        self.n_bytes = 0
        admission.freed = self._let_in

    def check(self) -> None:
        """Refuse a new stream where those that are here find no room. Raises Overloaded."""
        if self._admission.room_s <= 0 or any(not turn.done() for _, _, turn in self._waiting):
            raise Overloaded(
                "The streams and recordings here hold as much audio as they may. Try again, or another replica.",
                retry_after_s=RETRY_AFTER_S,
            )

    async def take(self, holding: Holding, n_bytes: int) -> None:
        """Count so much more once there is room, in turn."""
        if self._has_pass is holding or (not self._waiting and self._fits(n_bytes)):
            self.count(holding, n_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holding, n_bytes, turn))
        self._let_in()
        await turn

    def count(self, holding: Holding, n_bytes: int) -> None:
        """Count so much more, or less, whether there is room or not."""
        holding.n_bytes += n_bytes
        self.n_bytes += n_bytes
        self._admission.streams_s = self.n_bytes / BYTES_PER_S
        if n_bytes < 0:
            self._let_in()

    def end_pass(self, holding: Holding) -> None:
        """It is the turn of others, if this one had the pass."""
        if self._has_pass is holding:
            self._has_pass = None
            self._let_in()

    def _fits(self, n_bytes: int) -> bool:
        return n_bytes <= self._admission.room_s * BYTES_PER_S

    def _let_in(self) -> None:
        while self._waiting:
            holding, n_bytes, turn = self._waiting[0]
            if not turn.done():  # done where the stream was closed meanwhile
                if not self._fits(n_bytes):
                    if self._has_pass is not None:
                        return
                    self._has_pass = holding
                self.count(holding, n_bytes)
                turn.set_result(None)
            self._waiting.popleft()


class Holding:
    """What one stream holds."""

    def __init__(self, audio: StreamAudio) -> None:
        self._audio = audio
        self.n_bytes = 0
        self.is_waiting = False

    async def grow(self, n_bytes: int) -> None:
        """Hold so much more once there is room."""
        self.is_waiting = True
        try:
            await self._audio.take(self, n_bytes)
        finally:
            self.is_waiting = False

    def count(self, n_bytes: int) -> None:
        """Hold so much more, or less, at once: for what is bounded elsewhere."""
        self._audio.count(self, n_bytes)

    def shrink(self, n_bytes: int) -> None:
        """Let go of so much that had waited for room."""
        self._audio.count(self, -n_bytes)
        self._audio.end_pass(self)

    def close(self) -> None:
        """Let go of all."""
        self.shrink(self.n_bytes)
