"""How a FILE stream is cut: as the engine cuts a whole recording, with as much of it as is here.

Speech is gathered until there is enough to choose cuts well; then all pieces but the last are settled, and the last
waits for what follows it. Only the audio decides when, so the pieces do not depend on how fast it came.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.planning.cuts import CutPolicy, cut
from typeless_grpc.engine.planning.speech import MIN_SILENCE_MS, SPEECH_THRESHOLD
from typeless_grpc.streaming.endpoint import Began, Ended, Endpointer, EndpointOptions

# Enough audio for the choice of cuts to be about as good as over the whole recording: some five pieces.
_HORIZON_SAMPLES = 100 * SAMPLE_RATE_HZ
# Fine enough to find every pause; which of them are cuts is decided later (as in engine/recognizer.py).
_FINE = EndpointOptions(
    threshold=SPEECH_THRESHOLD,
    end_silence_s=MIN_SILENCE_MS / 1000,
    doubtful_silence_s=0.0,
    padding_s=0.0,
    max_utterance_s=CutPolicy().longest_s,
)


@dataclass(frozen=True)
class PlanOptions:
    """threshold: in (0, 1), a frame at or above it is speech. policy: what makes a good cut."""

    threshold: float = _FINE.threshold
    policy: CutPolicy = field(default_factory=CutPolicy)


@dataclass(frozen=True)
class Planned:
    """A piece that is settled. In samples: its speech, and its audio, which has room around the speech."""

    speech_start: int
    speech_end: int
    audio_start: int
    audio_end: int


class Planner:
    """One FILE stream's pieces; takes frames as `Endpointer` does."""

    def __init__(self, options: PlanOptions) -> None:
        self._policy = options.policy
        self._endpointer = Endpointer(replace(_FINE, threshold=options.threshold))
        self._onset: int | None = None
        self._spans: list[Span] = []  # not settled yet
        self._floor = 0  # where the last settled piece ends

    @property
    def settled(self) -> int:
        """Everything before this sample is in settled pieces, or in none."""
        starts = [self._spans[0].start] if self._spans else []
        if self._onset is not None:
            starts.append(self._onset)
        start = min(starts, default=self._endpointer.settled)
        return max(self._floor, start - round(max(self._policy.padding_s, self._policy.context_s) * SAMPLE_RATE_HZ))

    @property
    def is_speaking(self) -> bool:
        """Whether someone speaks at the end of what was heard."""
        return self._onset is not None

    def reconfigure(self, options: PlanOptions) -> None:
        """Cut by other rules from here on; with more padding than before, no piece reaches into settled audio."""
        self._floor = self.settled
        self._policy = options.policy
        self._endpointer.reconfigure(replace(_FINE, threshold=options.threshold))

    def hear(self, probability: float) -> list[Planned]:
        """Take the next frame."""
        for turn in self._endpointer.hear(probability):
            self._take(turn)
        if self._spans and self._endpointer.settled - self._spans[0].start > _HORIZON_SAMPLES:
            return self._plan(keep_last=True)
        return []

    def finalize(self, at: int) -> list[Planned]:
        """Settle everything before this sample."""
        for turn in self._endpointer.finalize(at):
            self._take(turn)
        return self._plan(keep_last=False, end=at)

    def settle(self) -> list[Planned]:
        """Settle all speech that is over."""
        return self._plan(keep_last=False)

    def _take(self, turn: object) -> None:
        match turn:
            case Began(onset):
                self._onset = onset
            case Ended(speech_end) if self._onset is not None:
                self._spans.append(Span(max(self._onset, self._floor), max(speech_end, self._floor)))
                self._onset = None

    def _plan(self, *, keep_last: bool, end: int | None = None) -> list[Planned]:
        if not self._spans:
            return []
        limit = end if end is not None else max(self._endpointer.settled, self._spans[-1].end)
        pieces = cut(self._spans, limit, self._policy)
        settled = pieces[:-1] if keep_last and len(pieces) > 1 else pieces
        self._spans = [span for piece in pieces[len(settled) :] for span in piece.speech]
        planned = []
        for piece in settled:
            start = max(piece.start, self._floor)
            planned.append(Planned(piece.speech[0].start, piece.speech[-1].end, start, max(start, piece.end)))
            self._floor = max(start, piece.end)
        return planned
