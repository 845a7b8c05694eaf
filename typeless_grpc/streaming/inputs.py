"""The inputs of a `session.Session`, besides `Update`, `FinalDecoded` and `FinalFailed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.streaming.release import FinalResult
from typeless_grpc.streaming.requests import Update


@dataclass(frozen=True)
class Frames:
    """Audio has arrived. received: samples in all. probabilities: of speech, for each frame that is now complete."""

    received: int
    probabilities: Sequence[float] = ()


@dataclass(frozen=True)
class EndpointDecision:
    """Whether the undecided utterance is over. It is if its text has high confidence."""

    utterance_id: int
    is_endpoint: bool


@dataclass(frozen=True)
class Finalize:
    """The caller ends the open utterance here."""


@dataclass(frozen=True)
class End:
    """No more audio follows."""


@dataclass(frozen=True)
class InterimDecoded:
    """The open utterance was decoded from its start to the sample up_to. confidence: that of the text, in [0, 1]."""

    utterance_id: int
    text: str
    up_to: int
    confidence: float = 0.0


Input = Frames | EndpointDecision | Finalize | Update | End | InterimDecoded | FinalResult


@dataclass(frozen=True)
class LastReleased:
    """No more audio comes, and no final is pending."""
