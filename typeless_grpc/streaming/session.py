"""A stream's session as a state machine: inputs in, effects out; no I/O, no clock, no engine.

The session holds no audio: it gets a probability of speech for each frame, and the hypotheses of the engine. It decides
where utterances begin and end, which of them to decode and when, and in which order finals are released.

    LISTENING  nobody speaks
    SPEAKING   an utterance is open
    UNDECIDED  the open utterance may be over; `EndpointDecision` says whether it is, and further frames wait for it
    ENDING     no more audio comes; finals are still pending
    DONE       `Completed` was emitted

TRANSITIONS lists what can happen in each state and the state that follows: inputs, boundaries that the segmenter finds,
and the release of the last final. An input that a state does not list raises WrongState. The driver never sends one,
and the tests try them all.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.errors import WrongState
from typeless_grpc.speech.transcript import Segment
from typeless_grpc.streaming import events
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.effects import CancelSpeculation, Decode, Effect, Emit, InterimDue, Speculate
from typeless_grpc.streaming.inputs import End, EndpointDecision, Finalize, Frames, Input, InterimDecoded, LastReleased
from typeless_grpc.streaming.release import FinalDecoded, FinalFailed, FinalResult, PendingFinal, ReleaseQueue
from typeless_grpc.streaming.requests import SegmentationOptions, Update
from typeless_grpc.streaming.segmentation import (
    Boundary,
    Endpoint,
    Onset,
    Pause,
    PossibleEndpoint,
    Segmenter,
    SpeechResumed,
)
from typeless_grpc.streaming.stability import Stability
from typeless_grpc.streaming.transcript_builder import TranscriptBuilder
from typeless_grpc.streaming.utterances import OpenUtterance, Utterance


class State(Enum):
    """The states that the module docstring describes."""

    LISTENING = "listening"
    SPEAKING = "speaking"
    UNDECIDED = "undecided"
    ENDING = "ending"
    DONE = "done"


class Mode(Protocol):
    """What differs between LIVE and FILE for a session; see `modes.py`."""

    @property
    def segmentation(self) -> SegmentationOptions:
        """The options of the segmenter of a new stream."""
        ...

    def segmenter(self) -> Segmenter:
        """Return the segmenter of a new stream."""
        ...

    def segments(self, utterance: Utterance, recognition: Recognition | None, committed: str) -> list[Segment]:
        """Return the segments of an utterance. recognition: None if it could not be decoded."""
        ...


@dataclass
class _Open:
    """The open utterance and its interims. next_due: the sample from which the next interim is due."""

    utterance: OpenUtterance
    stability: Stability
    next_due: int


class Session:
    """One session. `apply` inputs in order; interims and finals may come in any order."""

    def __init__(
        self,
        options: DecodeOptions,
        mode: Mode,
        *,
        cadence: Cadence | None = None,
        stability: Callable[[], Stability] = Stability,
    ) -> None:
        """cadence: when interims are due; None for none. stability: creates the `Stability` of a new utterance."""
        self.state = State.LISTENING
        self.options = options
        self.undecided: Utterance | None = None  # in UNDECIDED: the utterance as it is if it ends here
        self.n_utterances = 0  # that are over
        self._mode, self._cadence, self._new_stability = mode, cadence, stability
        self._segmenter, self._segmentation = mode.segmenter(), mode.segmentation
        self._open: _Open | None = None
        self._pending = ReleaseQueue()
        self._transcript = TranscriptBuilder(options.model)
        self._waiting_frames: deque[float] = deque()
        self._n_frames = 0  # segmented
        self._received = self._processed = self._final = self._dropped = 0
        self._effects: list[Effect] = []

    @property
    def current(self) -> OpenUtterance | None:
        """The open utterance."""
        return self._open.utterance if self._open is not None else None

    @property
    def n_released(self) -> int:
        """Utterances whose finals are released."""
        return self._pending.n_released

    @property
    def cursors(self) -> events.Cursors:
        """How far each stage is."""
        return events.Cursors(
            received_s=self._received / SAMPLE_RATE_HZ,
            processed_s=self._processed / SAMPLE_RATE_HZ,
            final_s=self._final / SAMPLE_RATE_HZ,
            dropped_s=self._dropped / SAMPLE_RATE_HZ,
        )

    @property
    def is_quiet(self) -> bool:
        """See `Segmenter`."""
        return self._segmenter.is_quiet

    @property
    def is_speaking(self) -> bool:
        """See `Segmenter`."""
        return self._segmenter.is_speaking

    @property
    def segmented(self) -> int:
        """The sample up to which the audio is segmented."""
        return min(self._n_frames * FRAME_SAMPLES, self._received)

    @property
    def needed_from(self) -> int:
        """The sample before which no audio is needed any more."""
        return self._final

    def apply(self, input: Input) -> list[Effect]:
        """Apply an input, and return its effects. Raises WrongState if the state does not allow it."""
        if type(input) not in TRANSITIONS[self.state]:
            message = f"A stream that is {self.state.value} takes no {type(input).__name__}."
            raise WrongState(message, reason="STREAM_STATE")
        self._effects = []
        _HANDLERS[type(input)](self, input)
        if self.state is State.ENDING and self._pending.first is None:
            self._move(LastReleased())
            self._final = self._processed = self._received
            self._emit(self._transcript.completed(self._received))
        elif self.state is not State.DONE:
            self._advance()
        return self._effects

    def _move(self, happened: Input | Boundary | LastReleased) -> None:
        """Change the state as TRANSITIONS says."""
        self.state = TRANSITIONS[self.state][type(happened)]

    def _emit(self, event: events.Event, *, final: int | None = None) -> None:
        """Emit an event with the cursors of this moment. final: where the final cursor stops; see `_advance`."""
        if self.state is not State.DONE:
            self._advance(final)
        self._effects.append(Emit(event, self.cursors))

    def _advance(self, final: int | None = None) -> None:
        """Move the cursors on, never back. final: the sample before which all is final, as the state has it if None."""
        if final is None:
            final = self._settled()
        self._final = max(self._final, min(final, self._received))
        self._processed = max(self._processed, self._final)

    def _settled(self) -> int:
        """Return the sample before which all is final: where the first utterance without a final begins."""
        if (first := self._pending.first) is not None:
            return first.audio_start
        if self._open is not None:
            return self._open.utterance.audio_start
        return self._received if self.state is State.ENDING else self._segmenter.settled

    # ---- audio and requests ----------------------------------------------------------------------------------

    def _take_frames(self, frames: Frames) -> None:
        assert frames.received >= self._received
        self._received = frames.received
        self._waiting_frames.extend(frames.probabilities)
        self._segment()

    def _segment(self) -> None:
        """Pass waiting frames to the segmenter, up to an undecided utterance."""
        while self._waiting_frames and self.state is not State.UNDECIDED:
            self._take_boundaries(self._segmenter.take(self._waiting_frames.popleft()))
            self._n_frames += 1
            self._request_interim(self._n_frames * FRAME_SAMPLES)

    def _request_interim(self, up_to: int) -> None:
        """Request an interim if one is due, but not in a pause: the final may be near."""
        if self._cadence is None or self._open is None or up_to < self._open.next_due or self.is_quiet:
            return
        utterance = self._open.utterance
        self._open.next_due = up_to + self._cadence.samples_after(up_to - utterance.speech_start)
        self._effects.append(InterimDue(utterance, min(up_to, self._received)))

    def _take_decision(self, decision: EndpointDecision) -> None:
        assert self.undecided is not None
        if decision.utterance_id != self.undecided.id:
            raise WrongState(f"Utterance {decision.utterance_id} is not undecided.", reason="STREAM_STATE")
        self._move(decision)
        self.undecided = None
        self._take_boundaries(self._segmenter.decide(is_endpoint=decision.is_endpoint))
        self._segment()

    def _end_undecided(self) -> None:
        """End the undecided utterance, and each that becomes undecided by it, whatever the confidence of its text."""
        while self.undecided is not None:
            self._take_decision(EndpointDecision(self.undecided.id, is_endpoint=True))

    def _finalize(self, _: Finalize | End) -> None:
        self._end_undecided()
        self._take_boundaries(self._segmenter.finalize(self._received))

    def _update(self, update: Update) -> None:
        if (update.options, update.segmentation) != (self.options, self._segmentation):
            self._end_undecided()
            self._take_boundaries(self._segmenter.settle())  # utterances that are over keep the old options
            self.options, self._segmentation = update.options, update.segmentation
            self._segmenter.reconfigure(update.segmentation)
        self._emit(events.Configured(update.options, update.requested))

    def _end(self, end: End) -> None:
        self._finalize(end)
        self._move(end)

    # ---- boundaries of utterances ----------------------------------------------------------------------------

    def _take_boundaries(self, boundaries: Sequence[Boundary]) -> None:
        """Turn the endpointer's decisions into utterances and effects."""
        for boundary in boundaries:
            self._move(boundary)
            match boundary:
                case Onset():
                    self._begin_utterance(boundary)
                case Pause():
                    self._effects.append(Speculate(self._utterance_until(boundary), boundary.is_likely_end))
                case SpeechResumed():
                    assert self._open is not None
                    self._effects.append(CancelSpeculation(self._open.utterance.id))
                case PossibleEndpoint():
                    self.undecided = self._utterance_until(boundary)
                case Endpoint():
                    self._end_utterance(boundary)

    def _begin_utterance(self, onset: Onset) -> None:
        utterance = OpenUtterance(self.n_utterances, onset.audio_start, onset.speech_start, self.options)
        first_samples = self._cadence.first_samples if self._cadence is not None else 0
        self._open = _Open(utterance, self._new_stability(), onset.speech_start + first_samples)
        self._emit(events.SpeechStart(onset.speech_start / SAMPLE_RATE_HZ))

    def _end_utterance(self, endpoint: Endpoint) -> None:
        assert self._open is not None
        utterance = self._utterance_until(endpoint)
        speech_end = min(endpoint.speech_end, self._received)
        self._pending.add(utterance, self._open.stability)
        self._open = None
        self.n_utterances += 1
        self._transcript.count_speech(speech_end - utterance.speech_start)
        self._emit(events.SpeechEnd(speech_end / SAMPLE_RATE_HZ))
        self._effects.append(Decode(utterance))

    def _utterance_until(self, boundary: Pause | PossibleEndpoint | Endpoint) -> Utterance:
        assert self._open is not None
        # The last frame of all is filled up with silence: a boundary in it may lie beyond the audio.
        return self._open.utterance.until(boundary.speech_end, min(boundary.audio_end, self._received))

    # ---- text ------------------------------------------------------------------------------------------------

    def _take_interim(self, interim: InterimDecoded) -> None:
        """Commit the words of an interim, also if its utterance is over: they must not depend on when it arrives."""
        open_ = self._open if self._open is not None and self._open.utterance.id == interim.utterance_id else None
        stability = open_.stability if open_ is not None else self._pending.stability_of(interim.utterance_id)
        if stability is None or not interim.text:
            return
        stable, unstable = stability.add(interim.text)
        if open_ is not None:
            self._processed = max(self._processed, interim.up_to)
            start_s, end_s = open_.utterance.speech_start / SAMPLE_RATE_HZ, interim.up_to / SAMPLE_RATE_HZ
            self._emit(events.Interim(stable, unstable, start_s, max(start_s, end_s), interim.confidence))

    def _take_final(self, result: FinalResult) -> None:
        utterance = self._pending.put(result)
        if isinstance(result, FinalDecoded):
            self._processed = max(self._processed, utterance.audio_end)
        for pending, its_result in self._pending.release():
            self._release(pending, its_result)

    def _release(self, pending: PendingFinal, result: FinalResult) -> None:
        """Emit the segments of an utterance, or a warning if it could not be decoded."""
        utterance = pending.utterance
        recognition = result.recognition if isinstance(result, FinalDecoded) else None
        segments = self._mode.segments(utterance, recognition, pending.stability.committed)
        starts = [_sample(segment.start_s) for segment in segments]
        if isinstance(result, FinalFailed):
            self._dropped += utterance.audio_end - utterance.audio_start
            self._emit(events.Warned(result.error), final=starts[0] if starts else None)
        if recognition is not None:
            self._transcript.add_recognition(utterance, recognition)
        for segment, next_start in itertools.zip_longest(segments, starts[1:]):
            index = self._transcript.add_segment(segment)
            shown = segment if utterance.options.word_timestamps else replace(segment, words=())
            self._emit(events.Final(index, shown), final=next_start)


def _sample(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE_HZ)


_HANDLERS: Mapping[type, Callable[[Session, Any], None]] = {
    Frames: Session._take_frames,
    EndpointDecision: Session._take_decision,
    Finalize: Session._finalize,
    Update: Session._update,
    End: Session._end,
    InterimDecoded: Session._take_interim,
    FinalDecoded: Session._take_final,
    FinalFailed: Session._take_final,
}


def _staying(state: State, *kinds: type) -> Mapping[type, State]:
    return dict.fromkeys(kinds, state)


_REQUESTS = (Frames, Finalize, Update)
_RESULTS = (InterimDecoded, FinalDecoded, FinalFailed)

# End, Finalize and Update close the open utterance first, so their boundaries come before their own transition.
TRANSITIONS: Mapping[State, Mapping[type, State]] = {
    State.LISTENING: {
        **_staying(State.LISTENING, *_REQUESTS, *_RESULTS),
        Onset: State.SPEAKING,
        End: State.ENDING,
    },
    State.SPEAKING: {
        **_staying(State.SPEAKING, *_REQUESTS, *_RESULTS, Pause, SpeechResumed),
        PossibleEndpoint: State.UNDECIDED,
        Endpoint: State.LISTENING,
        End: State.ENDING,
    },
    State.UNDECIDED: {
        **_staying(State.UNDECIDED, *_REQUESTS, *_RESULTS),
        EndpointDecision: State.SPEAKING,
        End: State.ENDING,
    },
    State.ENDING: {**_staying(State.ENDING, *_RESULTS), LastReleased: State.DONE},
    State.DONE: {InterimDecoded: State.DONE},
}
