"""The effects of a `session.Session`: what the driver must do, in order."""

from __future__ import annotations

from dataclasses import dataclass

from typeless_grpc.streaming import events
from typeless_grpc.streaming.utterances import OpenUtterance, Utterance


@dataclass(frozen=True)
class Emit:
    """Send an event to the caller. cursors: those after this event, without later ones."""

    event: events.Event
    cursors: events.Cursors


@dataclass(frozen=True)
class Decode:
    """Decode this utterance for its final."""

    utterance: Utterance


@dataclass(frozen=True)
class Speculate:
    """Begin to decode this utterance, which is over unless speech resumes. is_likely: it is probably over."""

    utterance: Utterance
    is_likely: bool


@dataclass(frozen=True)
class CancelSpeculation:
    """Cancel the speculative decode of this utterance, because speech resumed."""

    utterance_id: int


@dataclass(frozen=True)
class InterimDue:
    """Decode the open utterance up to this sample. `InterimDecoded` may follow, before its final."""

    utterance: OpenUtterance
    up_to: int


Effect = Emit | Decode | Speculate | CancelSpeculation | InterimDue
