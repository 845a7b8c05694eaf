"""Segments a FILE stream into chunks, with the planner that `Transcribe` uses.

It collects speech until there is enough to choose good cuts. Then it reports all planned chunks except the last, which
waits for more audio. Only the audio decides when, so chunks do not depend on the speed of the upload.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.planning.cuts import CutPolicy, cut
from typeless_grpc.engine.planning.speech import MIN_SILENCE_MS, SPEECH_THRESHOLD
from typeless_grpc.streaming.endpoint import Endpointer, EndpointOptions
from typeless_grpc.streaming.segmentation import Boundary, Endpoint, Onset

# Some three chunks: enough audio to choose cuts about as well as over the whole recording, and no more, because a drain
# has to decode what is collected here (docs/measurements/long-recordings.md).
_HORIZON_SAMPLES = 60 * SAMPLE_RATE_HZ
# Fine enough to find every pause; which of them are cuts is decided later (as in engine/recognizer.py).
_FINE = EndpointOptions(
    threshold=SPEECH_THRESHOLD,
    end_silence_s=MIN_SILENCE_MS / 1000,
    low_confidence_silence_s=0.0,
    padding_s=0.0,
    max_utterance_s=CutPolicy().longest_s,
)


@dataclass(frozen=True)
class PlanOptions:
    """How a FILE stream is segmented. threshold: in (0, 1), a frame at or above it is speech. policy: of the cuts."""

    threshold: float = _FINE.threshold
    policy: CutPolicy = field(default_factory=CutPolicy)


class Planner:
    """The segmenter of one FILE stream; see `segmentation.Segmenter`. An `Endpoint` follows each `Onset` at once."""

    def __init__(self, options: PlanOptions) -> None:
        self._policy = options.policy
        self._endpointer = Endpointer(replace(_FINE, threshold=options.threshold))
        self._onset: int | None = None
        self._spans: list[Span] = []  # of speech, not in a chunk yet
        self._floor = 0  # where the last chunk ends

    @property
    def settled(self) -> int:
        """See `Segmenter`."""
        starts = [self._spans[0].start] if self._spans else []
        if self._onset is not None:
            starts.append(self._onset)
        start = min(starts, default=self._endpointer.settled)
        return max(self._floor, start - round(max(self._policy.padding_s, self._policy.context_s) * SAMPLE_RATE_HZ))

    @property
    def is_speaking(self) -> bool:
        """See `Segmenter`."""
        return self._onset is not None

    @property
    def is_quiet(self) -> bool:
        """See `Segmenter`. Always false: every pause ends speech in FILE mode."""
        return False

    def reconfigure(self, options: PlanOptions) -> None:
        """See `Segmenter`. More padding does not give chunks audio that is already settled."""
        self._floor = self.settled
        self._policy = options.policy
        self._endpointer.reconfigure(replace(_FINE, threshold=options.threshold))

    def take(self, probability: float) -> list[Boundary]:
        """See `Segmenter`."""
        for boundary in self._endpointer.take(probability):
            self._collect(boundary)
        if self._spans and self._endpointer.settled - self._spans[0].start > _HORIZON_SAMPLES:
            return self._plan(keep_last=True)
        return []

    def decide(self, *, is_endpoint: bool) -> list[Boundary]:
        """See `Segmenter`. Never called: FILE mode has no `PossibleEndpoint`."""
        raise AssertionError("a FILE stream has no possible endpoints")

    def finalize(self, at: int) -> list[Boundary]:
        """See `Segmenter`: everything before this sample is planned."""
        for boundary in self._endpointer.finalize(at):
            self._collect(boundary)
        return self._plan(keep_last=False, end=at)

    def settle(self) -> list[Boundary]:
        """See `Segmenter`: all speech that is over is planned."""
        return self._plan(keep_last=False)

    def _collect(self, boundary: Boundary) -> None:
        match boundary:
            case Onset(onset):
                self._onset = onset
            case Endpoint(speech_end) if self._onset is not None:
                self._spans.append(Span(max(self._onset, self._floor), max(speech_end, self._floor)))
                self._onset = None

    def _plan(self, *, keep_last: bool, end: int | None = None) -> list[Boundary]:
        """Return the boundaries of the chunks that can no longer change, and drop their speech."""
        if not self._spans:
            return []
        limit = end if end is not None else max(self._endpointer.settled, self._spans[-1].end)
        planned = cut(self._spans, limit, self._policy)
        settled = planned[:-1] if keep_last and len(planned) > 1 else planned
        self._spans = [span for chunk in planned[len(settled) :] for span in chunk.speech]
        boundaries: list[Boundary] = []
        for chunk in settled:
            start = max(chunk.start, self._floor)
            self._floor = max(start, chunk.end)
            boundaries += [Onset(chunk.speech[0].start, start), Endpoint(chunk.speech[-1].end, self._floor)]
        return boundaries
