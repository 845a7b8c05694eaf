"""The progress of a FILE stream, as events whose fraction never falls."""

from __future__ import annotations

from typing import Protocol

from typeless_grpc.clock import Clock
from typeless_grpc.streaming import events
from typeless_grpc.streaming.events import EndReason
from typeless_grpc.streaming.session import Session, State

_EVERY_S = 0.7  # checked four times a second, so at least one event comes each second
_UNKNOWN_REST_S = 60.0  # of audio that may still come if no container declares a length, so that the fraction moves
_MAX_BEFORE_END = 0.99


class ProgressHost(Protocol):
    """The stream that reports its progress."""

    @property
    def end_reason(self) -> EndReason | None:
        """Why no more audio is taken; None while it is."""
        ...

    @property
    def declared_s(self) -> float | None:
        """The length that a container declares; None if there is none."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether requests or decodes are pending."""
        ...

    def emit(self, event: events.Event) -> None:
        """Send an event to the caller."""
        ...


class ProgressReporter(Protocol):
    """Decides when to report progress. fraction: the last one that was reported."""

    fraction: float

    def tick(self) -> None:
        """Report progress if it is time and something has changed. Must be called a few times a second."""
        ...

    def released(self) -> None:
        """Report after finals were released."""
        ...

    def completed(self) -> None:
        """Report that all is transcribed."""
        ...


class NoProgress:
    """The `ProgressReporter` of a LIVE stream, which reports nothing: it has interims instead."""

    fraction = 0.0

    def tick(self) -> None:
        """See `ProgressReporter`."""

    def released(self) -> None:
        """See `ProgressReporter`."""

    def completed(self) -> None:
        """See `ProgressReporter`."""


class FileProgress:
    """The `ProgressReporter` of a FILE stream."""

    def __init__(self, host: ProgressHost, session: Session, clock: Clock) -> None:
        self._host, self._session, self._clock = host, session, clock
        self.fraction = 0.0
        self._reported_s = clock.now_s()
        self._reported_audio_s = 0.0

    def tick(self) -> None:
        """See `ProgressReporter`."""
        has_news = self._host.has_work or self._session.cursors.received_s > self._reported_audio_s
        if has_news and self._clock.now_s() - self._reported_s >= _EVERY_S:
            self._report()

    def released(self) -> None:
        """See `ProgressReporter`."""
        if self._session.state is not State.DONE:
            self._report()

    def completed(self) -> None:
        """See `ProgressReporter`."""
        self._report()

    def _report(self) -> None:
        self._reported_s, self._reported_audio_s = self._clock.now_s(), self._session.cursors.received_s
        # The rest of a drained stream goes to another server.
        is_whole = self._host.end_reason not in (None, EndReason.DRAINING)
        self._host.emit(self._event(is_whole=is_whole))

    def _event(self, *, is_whole: bool) -> events.Progress:
        cursors, done, total = self._session.cursors, self._session.n_released, self._session.n_utterances
        message = f"{done} of {total} chunks are transcribed."
        if self._session.state is State.DONE and is_whole:
            self.fraction, message = 1.0, "The whole recording is transcribed."
        else:
            declared_s = self._host.declared_s or cursors.received_s + _UNKNOWN_REST_S
            expected_s = cursors.received_s if is_whole else max(cursors.received_s, declared_s)
            fraction = cursors.final_s / expected_s if expected_s > 0 else 0.0
            self.fraction = max(self.fraction, min(_MAX_BEFORE_END, fraction))
        return events.Progress(self.fraction, done, total, cursors.final_s, cursors.received_s, message)
