"""Where utterances begin and end, decided frame by frame on the clock of the audio.

The rules are Silero's (see `audio/vad.py`) made to work without a look ahead: a frame at or above the threshold begins
speech, a pause of `end_silence` ends it, and speech that reaches its maximum is cut at its longest pause. Counts of
samples decide, so the same audio gives the same utterances however it was cut on its way here.

One thing more decides: whether the text so far can be trusted. Speakers pause within sentences, and words on both
sides of such a pause are heard worse when it is taken for the end; the model's own confidence tells many of these
pauses from an end. So at the end of a pause the endpointer is `undecided`, and hears nothing more until it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, Span

# Shorter sounds are clicks. Silero's own default is 250 ms; 4 frames still let a short "no" through.
MIN_SPEECH_SAMPLES = 4 * FRAME_SAMPLES
# A pause worth cutting at: Silero's min_silence_samples_at_max_speech.
_MIN_PAUSE_SAMPLES = int(0.098 * SAMPLE_RATE_HZ)

# So long before it is certain, the end of an utterance is likely: work on its text can begin.
LIKELY_BEFORE_S = 0.2


@dataclass(frozen=True)
class EndpointOptions:
    """threshold: in (0, 1), a frame at or above it is speech. The rest in seconds, as VoiceActivityOptions has them.

    doubtful_silence_s: end_silence_s where the text so far is doubtful; nobody asks about it where it is no longer.
    context_s: kept before speech where it is more than the padding: it is there already, and words are heard better.
    How the numbers were settled: docs/measurements/live.md.
    """

    threshold: float = 0.5
    end_silence_s: float = 0.5
    doubtful_silence_s: float = 0.8
    padding_s: float = 0.3
    context_s: float = 1.2
    max_utterance_s: float = 30.0

    @property
    def lead_s(self) -> float:
        """What is kept before speech; more than the padding only as far as it leaves the utterance to the speech."""
        return max(self.padding_s, min(self.context_s, self.max_utterance_s / 4))

    @property
    def likely_after_s(self) -> float:
        """The silence after which an utterance is likely to be over."""
        return max(self.padding_s, self.end_silence_s - LIKELY_BEFORE_S)

    @property
    def end_threshold(self) -> float:
        """Speech that has begun goes on until a frame is below this: Silero's hysteresis."""
        return max(self.threshold - 0.15, 0.01)


@dataclass(frozen=True)
class Began:
    """Speech is certain. onset: its first sample; audio_start: that of the utterance, with its padding."""

    onset: int
    audio_start: int


@dataclass(frozen=True)
class Paused:
    """If the pause lasts, the utterance is this; else `Resumed` follows.

    Said twice where there is time: once there is padding, and again once the end is likely (is_likely).
    """

    speech_end: int
    audio_end: int
    is_likely: bool


@dataclass(frozen=True)
class Resumed:
    """The pause did not last."""


@dataclass(frozen=True)
class Ended:
    """The utterance is over. speech_end, audio_end: exclusive, without and with padding."""

    speech_end: int
    audio_end: int


@dataclass(frozen=True)
class Undecided:
    """If its text can be trusted, the utterance is over and is this; `decide` must follow."""

    speech_end: int
    audio_end: int


Turn = Began | Paused | Resumed | Undecided | Ended


@dataclass
class _Speech:
    """Speech that goes on. probabilities: one for each frame from first_frame on."""

    onset: int
    audio_start: int
    first_frame: int
    probabilities: list[float] = field(default_factory=list)
    pauses: list[Span] = field(default_factory=list)
    pause: int | None = None
    n_speech: int = 0
    is_certain: bool = False
    is_paused: bool = False
    is_likely_over: bool = False
    is_doubtful: bool = False


class Endpointer:
    """One stream's utterances."""

    def __init__(self, options: EndpointOptions) -> None:
        self._options = self._next_options = options
        self._position = 0
        self._floor = 0  # where the last utterance's audio ended: no other begins before
        self._speech: _Speech | None = None
        self.is_undecided = False

    @property
    def settled(self) -> int:
        """Everything before this sample belongs to utterances that are over, or to none."""
        if self._speech is not None:
            return self._speech.audio_start
        return max(self._floor, self._position - _samples(self._next_options.lead_s))

    @property
    def is_quiet(self) -> bool:
        """Whether speech, if there is any, may be over: the last frame was below the threshold."""
        return self._speech is None or self._speech.pause is not None

    def reconfigure(self, options: EndpointOptions) -> None:
        """Let options hold from the next utterance on; with more padding than before, it still has no settled audio."""
        self._floor = max(self._floor, self.settled)
        self._next_options = options

    def hear(self, probability: float) -> list[Turn]:
        """Take the next frame of 512 samples; not while it is undecided. probability: of speech, in [0, 1]."""
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
        return self._go_on(self._speech, probability, start)

    def decide(self, *, is_over: bool) -> list[Turn]:
        """Answer to `Undecided`: whether the utterance is over. If not, only a pause for doubtful text ends it."""
        assert self.is_undecided
        assert self._speech is not None
        self.is_undecided = False
        if is_over:
            return [self._ended(self._speech)]
        self._speech.is_doubtful = True
        return []

    def finalize(self, at: int) -> list[Turn]:
        """End the current utterance at this sample, which lies in or after the last frame; without one do nothing."""
        speech = self._speech
        if speech is None or not speech.is_certain:
            return []
        self._speech, self._floor = None, max(self._floor, at)
        speech_end = min(at, speech.pause if speech.pause is not None else at)
        return [Ended(speech_end, min(at, speech_end + _samples(self._options.padding_s)))]

    def _go_on(self, speech: _Speech, probability: float, start: int) -> list[Turn]:
        turns: list[Turn] = []
        speech.probabilities.append(probability)
        if probability >= self._options.threshold:
            speech.n_speech += FRAME_SAMPLES
            turns += self._resumed(speech, start)
        elif probability < self._options.end_threshold and speech.pause is None:
            speech.pause = start
        if not speech.is_certain and speech.n_speech >= MIN_SPEECH_SAMPLES:
            speech.is_certain = True
            turns.append(Began(speech.onset, speech.audio_start))
        turns += self._paused(speech)
        if self._speech is not None and self._is_full(speech):
            turns += self._cut(speech)
        return turns

    @property
    def _max_samples(self) -> int:
        return max(_samples(self._options.max_utterance_s), 2 * MIN_SPEECH_SAMPLES)

    def _resumed(self, speech: _Speech, start: int) -> list[Turn]:
        was_paused, speech.is_paused, speech.is_likely_over, speech.is_doubtful = speech.is_paused, False, False, False
        if speech.pause is not None and start - speech.pause >= _MIN_PAUSE_SAMPLES:
            speech.pauses.append(Span(speech.pause, start))
        speech.pause = None
        return [Resumed()] if was_paused else []

    def _paused(self, speech: _Speech) -> list[Turn]:
        if speech.pause is None:
            return []
        silence, padding = self._position - speech.pause, _samples(self._options.padding_s)
        if silence >= _samples(self._options.end_silence_s):
            return self._pause_over(speech, silence)
        if not speech.is_certain or speech.is_likely_over or silence < padding:
            return []
        speech.is_likely_over = silence >= _samples(self._options.likely_after_s)
        if speech.is_paused and not speech.is_likely_over:
            return []
        speech.is_paused = True
        return [Paused(speech.pause, speech.pause + padding, speech.is_likely_over)]

    def _pause_over(self, speech: _Speech, silence: int) -> list[Turn]:
        if not speech.is_certain:
            self._speech = None
            return []
        if silence >= _samples(self._options.doubtful_silence_s) or self._is_full(speech):
            return [self._ended(speech)]
        if speech.is_doubtful:
            return []
        self.is_undecided = True
        return [Undecided(*self._span(speech))]

    def _ended(self, speech: _Speech) -> Ended:
        speech_end, self._floor = self._span(speech)
        self._speech = None
        return Ended(speech_end, self._floor)

    def _span(self, speech: _Speech) -> tuple[int, int]:
        """Where the speech ends that a pause ends, and its audio."""
        assert speech.pause is not None
        return speech.pause, min(self._position, speech.pause + _samples(self._options.padding_s))

    def _is_full(self, speech: _Speech) -> bool:
        return self._position + FRAME_SAMPLES - speech.audio_start > self._max_samples

    def _cut(self, speech: _Speech) -> list[Turn]:
        """End an utterance that is as long as it may be; what follows the cut begins the next."""
        self._speech = None
        if not speech.is_certain:
            self._floor = speech.onset
            return []
        cut = self._cut_at(speech)
        padding = min(_samples(self._options.padding_s), (cut.end - cut.start) // 2)
        self._floor = cut.start + padding
        ended = Ended(cut.start, cut.start + padding)
        if cut.end >= self._position:
            return [ended]
        self._options = self._next_options
        rest = _Speech(cut.end, max(self._floor, cut.end - padding), first_frame=cut.end - cut.end % FRAME_SAMPLES)
        rest.probabilities = speech.probabilities[(rest.first_frame - speech.first_frame) // FRAME_SAMPLES :]
        rest.pauses = [pause for pause in speech.pauses if pause.start >= cut.end]
        rest.pause, rest.is_certain = speech.pause, True
        self._speech = rest
        return [ended, Began(rest.onset, rest.audio_start)]

    def _cut_at(self, speech: _Speech) -> Span:
        """The longest pause of the later three quarters, else the quietest frame of the last third."""
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
