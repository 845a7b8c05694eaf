"""Endpointing: finds where the utterances of a LIVE stream begin and end, frame by frame.

The rules are Silero's (see `audio/vad.py`) without look-ahead: a frame at or above the threshold begins speech, a pause
of `end_silence_s` ends it, and an utterance that reaches its maximum length is cut at its longest pause. Only counts of
samples decide, so the same audio gives the same utterances, whatever the size of its packets.

The confidence of the text decides as well. Speakers pause within sentences, and the words on both sides of such a pause
are recognized worse if an utterance ends there; the model's confidence distinguishes many of these pauses from an end.
So after `end_silence_s` the endpointer reports a `PossibleEndpoint`, and takes no frame until `decide` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, Span
from typeless_grpc.streaming.segmentation import Boundary, Endpoint, Onset, Pause, PossibleEndpoint, SpeechResumed

# Shorter sounds are clicks. Silero's default is 250 ms; 4 frames are short enough for a "no".
MIN_SPEECH_SAMPLES = 4 * FRAME_SAMPLES
# A pause worth cutting at: Silero's min_silence_samples_at_max_speech.
_MIN_PAUSE_SAMPLES = int(0.098 * SAMPLE_RATE_HZ)

# The end of an utterance is likely this long before the end-of-utterance silence is complete.
LIKELY_BEFORE_S = 0.2


@dataclass(frozen=True)
class EndpointOptions:
    """How a LIVE stream is segmented; durations in seconds, named as in the message VoiceActivityOptions.

    threshold: in (0, 1), a frame at or above it is speech. low_confidence_silence_s: the end-of-utterance silence if
    the text has low confidence; the confidence is ignored unless this is more than end_silence_s. context_s: audio
    before the speech that is decoded with it, at least padding_s; it improves the first words.
    docs/measurements/live.md has the measurements behind the defaults.
    """

    threshold: float = 0.5
    end_silence_s: float = 0.5
    low_confidence_silence_s: float = 0.8
    padding_s: float = 0.3
    context_s: float = 1.2
    max_utterance_s: float = 30.0

    @property
    def lead_s(self) -> float:
        """Audio that is kept before speech: context_s, unless it would fill more than a quarter of an utterance."""
        return max(self.padding_s, min(self.context_s, self.max_utterance_s / 4))

    @property
    def likely_after_s(self) -> float:
        """The silence after which an utterance is likely to be over."""
        return max(self.padding_s, self.end_silence_s - LIKELY_BEFORE_S)

    @property
    def end_threshold(self) -> float:
        """Speech that has begun goes on until a frame is below this: Silero's hysteresis."""
        return max(self.threshold - 0.15, 0.01)


@dataclass
class _Speech:
    """The open utterance.

    probabilities: one for each frame from first_frame on. pause: where the current pause began.
    """

    onset: int
    audio_start: int
    first_frame: int
    probabilities: list[float] = field(default_factory=list)
    pauses: list[Span] = field(default_factory=list)
    pause: int | None = None
    n_speech: int = 0
    is_confirmed: bool = False
    is_paused: bool = False
    is_likely_over: bool = False
    has_low_confidence: bool = False


class Endpointer:
    """The segmenter of one LIVE stream; see `segmentation.Segmenter`."""

    def __init__(self, options: EndpointOptions) -> None:
        self._options = self._next_options = options
        self._position = 0
        self._floor = 0  # where the audio of the last utterance ended; the next begins no earlier
        self._speech: _Speech | None = None
        self.is_undecided = False

    @property
    def settled(self) -> int:
        """See `Segmenter`."""
        if self._speech is not None:
            return self._speech.audio_start
        return max(self._floor, self._position - _samples(self._next_options.lead_s))

    @property
    def is_quiet(self) -> bool:
        """See `Segmenter`: whether the last frame is below the threshold."""
        return self._speech is None or self._speech.pause is not None

    @property
    def is_speaking(self) -> bool:
        """See `Segmenter`."""
        return self._speech is not None and self._speech.is_confirmed

    def reconfigure(self, options: EndpointOptions) -> None:
        """See `Segmenter`. More padding does not give the next utterance audio that is already settled."""
        self._floor = max(self._floor, self.settled)
        self._next_options = options

    def take(self, probability: float) -> list[Boundary]:
        """See `Segmenter`."""
        assert not self.is_undecided
        start = self._position
        self._position += FRAME_SAMPLES
        if self._speech is None:
            self._options = self._next_options
            if probability < self._options.threshold:
                return []
            onset = max(start, self._floor)
            audio_start = max(self._floor, onset - _samples(self._options.lead_s))
            self._speech = _Speech(onset, audio_start, first_frame=start)
        return self._extend(self._speech, probability, start)

    def decide(self, *, is_endpoint: bool) -> list[Boundary]:
        """See `Segmenter`. If it is no endpoint, only a pause of low_confidence_silence_s becomes one."""
        assert self.is_undecided
        assert self._speech is not None
        self.is_undecided = False
        if is_endpoint:
            return [self._endpoint(self._speech)]
        self._speech.has_low_confidence = True
        return []

    def settle(self) -> list[Boundary]:
        """See `Segmenter`: nothing is held back."""
        return []

    def finalize(self, at: int) -> list[Boundary]:
        """See `Segmenter`."""
        speech = self._speech
        if speech is None or not speech.is_confirmed:
            return []
        self._speech, self._floor = None, max(self._floor, at)
        speech_end = min(at, speech.pause if speech.pause is not None else at)
        return [Endpoint(speech_end, min(at, speech_end + _samples(self._options.padding_s)))]

    def _extend(self, speech: _Speech, probability: float, start: int) -> list[Boundary]:
        """Take a frame into the open utterance. start: the first sample of the frame."""
        boundaries: list[Boundary] = []
        speech.probabilities.append(probability)
        if probability >= self._options.threshold:
            speech.n_speech += FRAME_SAMPLES
            boundaries += self._resumed(speech, start)
        elif probability < self._options.end_threshold and speech.pause is None:
            speech.pause = start
        if not speech.is_confirmed and speech.n_speech >= MIN_SPEECH_SAMPLES:
            speech.is_confirmed = True
            boundaries.append(Onset(speech.onset, speech.audio_start))
        boundaries += self._paused(speech)
        if self._speech is not None and self._is_full(speech):
            boundaries += self._cut(speech)
        return boundaries

    @property
    def _max_samples(self) -> int:
        return max(_samples(self._options.max_utterance_s), 2 * MIN_SPEECH_SAMPLES)

    def _resumed(self, speech: _Speech, start: int) -> list[Boundary]:
        """End the pause, if there is one: the frame that begins at start is speech."""
        was_paused = speech.is_paused
        speech.is_paused = speech.is_likely_over = speech.has_low_confidence = False
        if speech.pause is not None and start - speech.pause >= _MIN_PAUSE_SAMPLES:
            speech.pauses.append(Span(speech.pause, start))
        speech.pause = None
        return [SpeechResumed()] if was_paused else []

    def _paused(self, speech: _Speech) -> list[Boundary]:
        """Report what the pause has become long enough for."""
        if speech.pause is None:
            return []
        silence, padding = self._position - speech.pause, _samples(self._options.padding_s)
        if silence >= _samples(self._options.end_silence_s):
            return self._pause_over(speech, silence)
        if not speech.is_confirmed or speech.is_likely_over or silence < padding:
            return []
        speech.is_likely_over = silence >= _samples(self._options.likely_after_s)
        if speech.is_paused and not speech.is_likely_over:
            return []
        speech.is_paused = True
        return [Pause(speech.pause, speech.pause + padding, speech.is_likely_over)]

    def _pause_over(self, speech: _Speech, silence: int) -> list[Boundary]:
        """Report what follows from a pause of end_silence_s or more. silence: its length in samples."""
        if not speech.is_confirmed:
            self._speech = None
            return []
        if silence >= _samples(self._options.low_confidence_silence_s) or self._is_full(speech):
            return [self._endpoint(speech)]
        if speech.has_low_confidence:
            return []
        self.is_undecided = True
        return [PossibleEndpoint(*self._span(speech))]

    def _endpoint(self, speech: _Speech) -> Endpoint:
        speech_end, self._floor = self._span(speech)
        self._speech = None
        return Endpoint(speech_end, self._floor)

    def _span(self, speech: _Speech) -> tuple[int, int]:
        """Return the ends of the speech before the pause, and of its audio."""
        assert speech.pause is not None
        return speech.pause, min(self._position, speech.pause + _samples(self._options.padding_s))

    def _is_full(self, speech: _Speech) -> bool:
        return self._position + FRAME_SAMPLES - speech.audio_start > self._max_samples

    def _cut(self, speech: _Speech) -> list[Boundary]:
        """End an utterance that has reached its maximum length; what follows the cut begins the next one."""
        self._speech = None
        if not speech.is_confirmed:
            self._floor = speech.onset
            return []
        cut = self._cut_at(speech)
        padding = min(_samples(self._options.padding_s), (cut.end - cut.start) // 2)
        self._floor = cut.start + padding
        endpoint = Endpoint(cut.start, cut.start + padding)
        if cut.end >= self._position:
            return [endpoint]
        self._options = self._next_options
        rest = _Speech(cut.end, max(self._floor, cut.end - padding), first_frame=cut.end - cut.end % FRAME_SAMPLES)
        rest.probabilities = speech.probabilities[(rest.first_frame - speech.first_frame) // FRAME_SAMPLES :]
        rest.pauses = [pause for pause in speech.pauses if pause.start >= cut.end]
        rest.pause, rest.is_confirmed = speech.pause, True
        self._speech = rest
        return [endpoint, Onset(rest.onset, rest.audio_start)]

    def _cut_at(self, speech: _Speech) -> Span:
        """Return the longest pause in the last three quarters, or else the quietest frame of the last third."""
        earliest = speech.audio_start + self._max_samples // 4
        pauses = [pause for pause in speech.pauses if pause.start >= earliest]
        if speech.pause is not None and speech.pause >= earliest:
            pauses.append(Span(speech.pause, self._position))
        if pauses:
            return max(pauses, key=lambda pause: pause.end - pause.start)
        tail = max(1, len(speech.probabilities) // 3)
        first = len(speech.probabilities) - tail
        quietest = min(range(first, len(speech.probabilities)), key=lambda i: (speech.probabilities[i], -i))
        at = max(speech.onset, speech.first_frame + quietest * FRAME_SAMPLES)
        return Span(at, at)


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)
