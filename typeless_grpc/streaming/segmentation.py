"""The `Segmenter` protocol: finds where utterances begin and end, from the probability of speech in each frame.

There are two: `endpoint.Endpointer` for LIVE streams and `planner.Planner` for FILE streams. Positions are samples of
the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Onset:
    """An utterance has begun. audio_start: where its audio begins, padding included."""

    speech_start: int
    audio_start: int


@dataclass(frozen=True)
class Pause:
    """Speech paused. If the pause lasts, the utterance ends here; if not, `SpeechResumed` follows.

    Reported up to twice: once the pause is as long as the padding, and once the end of the utterance is likely.
    """

    speech_end: int
    audio_end: int
    is_likely_end: bool


@dataclass(frozen=True)
class SpeechResumed:
    """The pause did not last."""


@dataclass(frozen=True)
class PossibleEndpoint:
    """The utterance ends here if its text has high confidence. `Segmenter.decide` must be called next."""

    speech_end: int
    audio_end: int


@dataclass(frozen=True)
class Endpoint:
    """The utterance ends here."""

    speech_end: int
    audio_end: int


Boundary = Onset | Pause | SpeechResumed | PossibleEndpoint | Endpoint


class Segmenter(Protocol):
    """Segments one stream."""

    @property
    def settled(self) -> int:
        """The sample before which all audio belongs to finished utterances, or to none."""
        ...

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance is open, so that the end of the audio could cut a word."""
        ...

    @property
    def is_quiet(self) -> bool:
        """Whether the open utterance, if there is one, is in a pause."""
        ...

    def take(self, probability: float) -> Sequence[Boundary]:
        """Take the next frame of 512 samples. probability: of speech, in [0, 1]."""
        ...

    def decide(self, *, is_endpoint: bool) -> Sequence[Boundary]:
        """Decide whether the `PossibleEndpoint` is an endpoint."""
        ...

    def settle(self) -> Sequence[Boundary]:
        """Report utterances that are over but were held back."""
        ...

    def finalize(self, at: int) -> Sequence[Boundary]:
        """End the open utterance at this sample, which lies in or after the last frame."""
        ...

    def reconfigure(self, options: Any) -> None:
        """Use other options from the next utterance on."""
        ...
