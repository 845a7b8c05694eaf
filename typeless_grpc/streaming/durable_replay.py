"""Replays the inputs of a session that another server had, and collects the work that is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from typeless_grpc.streaming import events
from typeless_grpc.streaming.effects import Decode, Effect, Emit, InterimDue
from typeless_grpc.streaming.events import PASSING, Entry
from typeless_grpc.streaming.inputs import Input, InterimDecoded
from typeless_grpc.streaming.release import FinalDecoded, FinalFailed
from typeless_grpc.streaming.utterances import Utterance


class Replay:
    """The replay of one session.

    audio: names of its parts. audio_bytes: the sum of all parts. received: samples that the inputs cover. pending:
    utterances without a final. due: interims to decode. emitted: events that have no sequence yet. is_over: whether all
    inputs are replayed.
    """

    def __init__(self, audio: Sequence[str] = (), audio_bytes: int = 0) -> None:
        self.audio, self._audio_bytes = audio, audio_bytes
        self.received = 0
        self.pending: dict[int, Utterance] = {}
        self.due: list[InterimDue] = []
        self.emitted: deque[Emit] = deque()
        self.entries = [Entry(1, events.Started(), events.Cursors(), audio_bytes)]
        self.completed: Emit | None = None
        self.completed_sequence: int | None = None
        self.has_completed = self.is_over = False

    def add(self, sequence: int, emitted: Emit) -> None:
        """Add an event that has its sequence to `entries`, with which the journal of the new stream begins."""
        self.entries.append(Entry(sequence, emitted.event, emitted.cursors, self._audio_bytes))

    def take(self, record: Input, effects: Iterable[Effect]) -> None:
        """Note which work an input has finished, and which its effects request."""
        match record:
            case InterimDecoded(utterance_id=utterance_id, up_to=up_to):
                self.due = [due for due in self.due if due.utterance.id != utterance_id or due.up_to > up_to]
            case FinalDecoded(utterance_id) | FinalFailed(utterance_id):
                del self.pending[utterance_id]
                self.due = [due for due in self.due if due.utterance.id != utterance_id]
        for effect in effects:
            match effect:
                case Decode(utterance):
                    self.pending[utterance.id] = utterance
                case InterimDue():
                    self.due.append(effect)
                case Emit(events.Completed()):
                    self.completed = effect
                case Emit(event) if not isinstance(event, PASSING):
                    self.emitted.append(effect)
