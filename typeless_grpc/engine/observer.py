"""The `EngineObserver` protocol: what the engine reports about its work.

Methods are called on the event loop, those about one call in its context. They must return at once, and must not raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.engine.interface import Lane


@dataclass(frozen=True)
class Stage:
    """Time that a batch spent in one operation of the model.

    name: "encode", "decode", "align", "detect_language" or "decode_with_fallback". started_s: start of its first call,
    on the engine's clock. seconds: sum of all its calls.
    """

    name: str
    started_s: float
    seconds: float


@dataclass(frozen=True)
class WindowReport:
    """A window of a batch. context: of the call at submission. is_done: it has a result that its caller waits for."""

    lane: Lane
    submitted_s: float
    context: Context
    is_done: bool


@dataclass(frozen=True)
class BatchReport:
    """A batch that has run; times in seconds of the engine's clock. stages: in the order in which they began."""

    windows: Sequence[WindowReport]
    started_s: float
    ended_s: float
    stages: Sequence[Stage] = ()


class EngineObserver(Protocol):
    """Notified of the engine's work."""

    def batch_ended(self, batch: BatchReport) -> None:
        """A batch has run."""
        ...

    def refused(self, lane: Lane, reason: str) -> None:
        """A window was refused, or dropped from the queue. reason: of the error."""
        ...

    def decoded_again(self, reason: str) -> None:
        """A chunk is decoded once more. reason: a quality issue, "hints", "uncovered" or "language"."""
        ...

    def suppressed(self, reason: str) -> None:
        """A segment was suppressed. reason: the name of the `SuppressionReason`, in lower case."""
        ...


class NoObserver:
    """Ignores everything."""

    def batch_ended(self, batch: BatchReport) -> None:
        """See `EngineObserver`."""

    def refused(self, lane: Lane, reason: str) -> None:
        """See `EngineObserver`."""

    def decoded_again(self, reason: str) -> None:
        """See `EngineObserver`."""

    def suppressed(self, reason: str) -> None:
        """See `EngineObserver`."""


class EngineObservers:
    """An `EngineObserver` that notifies several."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = observers

    def batch_ended(self, batch: BatchReport) -> None:
        """See `EngineObserver`."""
        for observer in self._observers:
            observer.batch_ended(batch)

    def refused(self, lane: Lane, reason: str) -> None:
        """See `EngineObserver`."""
        for observer in self._observers:
            observer.refused(lane, reason)

    def decoded_again(self, reason: str) -> None:
        """See `EngineObserver`."""
        for observer in self._observers:
            observer.decoded_again(reason)

    def suppressed(self, reason: str) -> None:
        """See `EngineObserver`."""
        for observer in self._observers:
            observer.suppressed(reason)
