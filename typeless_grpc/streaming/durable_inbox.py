"""The inbox of a durable stream."""

from __future__ import annotations

from typeless_grpc.engine.stream_audio import Holding
from typeless_grpc.streaming.durable_log import DurableLog
from typeless_grpc.streaming.inbox import Inbox
from typeless_grpc.streaming.requests import Control, Request


class DurableInbox(Inbox):
    """Passes audio to the log as it is taken, and drops controls that were applied on another server.

    n_put: bytes of audio that were put in all, those on earlier servers included. n_begun: those of them that the
    stream has taken out.
    """

    def __init__(self, held: Holding, max_bytes: int, log: DurableLog) -> None:
        super().__init__(held, max_bytes)
        self._log = log
        self._ignored_before = 0
        self.n_put = self.n_begun = 0

    def resume(self, n_stored: int, *, ignored_before: int) -> None:
        """Continue after n_stored bytes of audio. ignored_before: controls before this byte were applied."""
        self.n_put = self.acknowledged_bytes = n_stored
        self._ignored_before = ignored_before

    def _count_audio(self, data: bytes) -> None:
        """See `Inbox`. Audio is acknowledged only once it is stored."""
        self.n_put += len(data)

    async def get(self) -> Request:
        """See `Inbox`."""
        while True:
            request = await super().get()
            if isinstance(request, bytes):
                # Not earlier: the caller forgets what precedes acknowledged audio, so all before it must be in the log.
                self.n_begun += len(request)
                self._log.add_audio(request)
                return request
            if request is Control.END or self.n_begun >= self._ignored_before:
                return request
            self.done(request)
