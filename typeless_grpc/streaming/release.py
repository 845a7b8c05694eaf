"""Releases the finals of a stream in the order of its audio, whatever the order in which they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from typeless_grpc.engine.interface import Recognition
from typeless_grpc.errors import TypelessError, WrongState
from typeless_grpc.streaming.stability import Stability
from typeless_grpc.streaming.utterances import Utterance


@dataclass(frozen=True)
class FinalDecoded:
    """A whole utterance was decoded."""

    utterance_id: int
    recognition: Recognition


@dataclass(frozen=True)
class FinalFailed:
    """An utterance cannot be decoded, and is not tried again."""

    utterance_id: int
    error: TypelessError


FinalResult = FinalDecoded | FinalFailed


@dataclass
class PendingFinal:
    """An utterance that is over and not released. result: None until it is decoded."""

    utterance: Utterance
    stability: Stability
    result: FinalResult | None = None


class ReleaseQueue:
    """The utterances of one stream that are over and not released, in the order of the audio."""

    def __init__(self) -> None:
        self._pending: dict[int, PendingFinal] = {}  # in the order of the audio
        self.n_released = 0

    @property
    def first(self) -> Utterance | None:
        """The utterance that is released next; None if none is pending."""
        return next((pending.utterance for pending in self._pending.values()), None)

    def add(self, utterance: Utterance, stability: Stability) -> None:
        """Append an utterance. stability: of its interims."""
        self._pending[utterance.id] = PendingFinal(utterance, stability)

    def stability_of(self, utterance_id: int) -> Stability | None:
        """Return the stability of a pending utterance's interims."""
        pending = self._pending.get(utterance_id)
        return pending.stability if pending is not None else None

    def put(self, result: FinalResult) -> Utterance:
        """Store a result, and return its utterance. Raises WrongState unless the utterance waits for one."""
        pending = self._pending.get(result.utterance_id)
        if pending is None or pending.result is not None:
            raise WrongState(f"Utterance {result.utterance_id} is not being decoded.", reason="STREAM_STATE")
        pending.result = result
        return pending.utterance

    def release(self) -> Iterator[tuple[PendingFinal, FinalResult]]:
        """Remove and yield the utterances up to the first that has no result."""
        while self._pending:
            pending = next(iter(self._pending.values()))
            if pending.result is None:
                return
            del self._pending[pending.utterance.id]
            self.n_released += 1
            yield pending, pending.result
