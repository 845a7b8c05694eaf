"""What streams report about their work. Methods run on the event loop; they must return at once and must not raise."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from typing import Protocol


class StreamObserver(Protocol):
    """Notified of the work of all streams. mode: "live" or "file"."""

    def session(self, event: str) -> None:
        """A session changed.

        event: "opened", "resumed", "expired" (its resume window is over), "evicted" (for a newer one) or "handed_over"
        (to another server, because this one stops).
        """
        ...

    def interim(self, outcome: str) -> None:
        """An interim was "sent", "skipped" (a newer one replaced it), "dropped" by the engine, or left "unread"."""
        ...

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        """A final was released.

        latency_s: since the audio of the end of its speech arrived; None if that is not known. context: of the stream.
        """
        ...


class NoStreamObserver:
    """Ignores everything."""

    def session(self, event: str) -> None:
        """See `StreamObserver`."""

    def interim(self, outcome: str) -> None:
        """See `StreamObserver`."""

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        """See `StreamObserver`."""


class StreamObservers:
    """A `StreamObserver` that notifies several."""

    def __init__(self, observers: Sequence[StreamObserver]) -> None:
        self._observers = observers

    def session(self, event: str) -> None:
        """See `StreamObserver`."""
        for observer in self._observers:
            observer.session(event)

    def interim(self, outcome: str) -> None:
        """See `StreamObserver`."""
        for observer in self._observers:
            observer.interim(outcome)

    def final(self, mode: str, latency_s: float | None, context: Context) -> None:
        """See `StreamObserver`."""
        for observer in self._observers:
            observer.final(mode, latency_s, context)
