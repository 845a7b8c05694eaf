"""Measures one stream for observers: what it uses, and how long after their speech its finals are released."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from typeless_grpc.account import CallAccount, in_context
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.streaming import events
from typeless_grpc.streaming.dependencies import Dependencies

# Blocks of audio that are remembered: more than a minute of the shortest that clients send, 20 ms.
_MAX_BLOCKS = 4096


class StreamMeter:
    """Follows audio from its arrival to its final.

    account: the usage of all calls of the stream together. context: in which the stream's work runs. charged_s: audio
    that its calls were charged for.
    """

    def __init__(self, dependencies: Dependencies, mode: str) -> None:
        self._clock, self._observer, self._mode = dependencies.clock, dependencies.observer, mode
        self.account = CallAccount()
        self.charged_s = 0.0
        self._opened_s = self._clock.now_s()
        self.context = in_context(self.account)
        self._waiting: deque[float] = deque()  # arrival times of the requests in the inbox, which bounds them
        self._taken_s = 0.0
        self._blocks: deque[tuple[int, float]] = deque(maxlen=_MAX_BLOCKS)  # end of each in samples, arrival time
        self._calls: list[CallAccount] = []  # of the calls that have the stream; the last one resumed it
        self._uncounted_s = 0.0  # audio that was decoded while no call had the stream

    @property
    def elapsed_s(self) -> float:
        """Seconds since the session was opened."""
        return self._clock.now_s() - self._opened_s

    @contextmanager
    def counted_for(self, call: CallAccount) -> Iterator[None]:
        """Add the stream's usage during the block to a call's account. Audio counts when it is decoded to samples."""
        queue_s, processing_s = self.account.queue_s, self.account.processing_s
        self._calls.append(call)
        call.add_audio(self._uncounted_s)
        self._uncounted_s = 0.0
        try:
            yield
        finally:
            self._calls.remove(call)
            call.queue_s += self.account.queue_s - queue_s
            call.processing_s += self.account.processing_s - processing_s

    def put(self) -> None:
        """A request with audio was put into the inbox."""
        self._waiting.append(self._clock.now_s())

    def taken(self) -> None:
        """The oldest request with audio was taken from the inbox."""
        self._taken_s = self._waiting.popleft()

    def resumed(self, end: int, *, charged_s: float, elapsed_s: float) -> None:
        """Continue after another server, which counted the audio up to this sample."""
        self.charged_s, self._opened_s = charged_s, self._clock.now_s() - elapsed_s
        self._taken_s = self._clock.now_s()
        self.account.add_audio(end / SAMPLE_RATE_HZ)

    def reached(self, end: int) -> None:
        """The audio of the taken request is decoded up to this sample."""
        self._blocks.append((end, self._taken_s))
        added_s = end / SAMPLE_RATE_HZ - self.account.audio_s
        self.account.add_audio(added_s)
        if self._calls:
            self._calls[-1].add_audio(added_s)
        else:
            self._uncounted_s += added_s

    def unread(self) -> None:
        """An interim was not sent, because the caller reads too slowly."""
        self._observer.interim("unread")

    def emitted(self, event: events.Event) -> None:
        """An event was put into the journal."""
        match event:
            case events.Interim():
                self._observer.interim("sent")
            case events.Final(segment=segment):
                self._observer.final(self._mode, self._since(segment.end_s), self.context)

    def _since(self, offset_s: float) -> float | None:
        """Return the seconds since the audio at offset_s arrived; None if it is not remembered."""
        index = bisect_left(self._blocks, (int(offset_s * SAMPLE_RATE_HZ), 0.0))
        if index == len(self._blocks) or (index == 0 and len(self._blocks) == _MAX_BLOCKS):
            return None
        return self._clock.now_s() - self._blocks[index][1]
