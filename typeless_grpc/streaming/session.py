"""A stream's session as a state table: inputs in, effects out; no I/O, no clock, no engine.

Audio is counted, not held: frames come as probabilities of speech, text comes as what the engine heard. The session
decides what is an utterance, what is to be decoded, which words are certain and in which order finals are said.

    LISTENING  nobody speaks
    SPEAKING   an utterance is under way
    ENDING     no more audio comes; finals are still out
    DONE       `Completed` was said

Inputs that a state does not list in TABLE are refused with WrongState: the driver never sends them, and the tests try
them all. Text of an utterance that is over may still arrive as an interim: it is shown to nobody.

LIVE: each utterance is a piece, decoded on its own (`endpoint.py`). FILE: the audio is cut into pieces as a recording
is that is transcribed whole (`planner.py`), and a piece counts as an utterance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.errors import TypelessError, WrongState
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Suppressed, joined
from typeless_grpc.streaming import events, finals
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.endpoint import (
    Began,
    Ended,
    Endpointer,
    EndpointOptions,
    Paused,
    Resumed,
    Turn,
    Undecided,
)
from typeless_grpc.streaming.finals import Piece
from typeless_grpc.streaming.planner import Planned, Planner, PlanOptions
from typeless_grpc.streaming.stability import Stability

# How audio is cut: LIVE or FILE.
Rules = EndpointOptions | PlanOptions


class State(Enum):
    """See the module."""

    LISTENING = "listening"
    SPEAKING = "speaking"
    ENDING = "ending"
    DONE = "done"


# ---- inputs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """Audio came: received samples in all, and the probabilities of the frames that are complete now."""

    received: int
    probabilities: Sequence[float] = ()


@dataclass(frozen=True)
class Judged:
    """The text of the piece that is `undecided` was heard. is_sure: it can be trusted, so the utterance is over."""

    piece_id: int
    is_sure: bool


@dataclass(frozen=True)
class Finalize:
    """The caller ends the utterance here."""


@dataclass(frozen=True)
class Update:
    """The caller replaces the options. rules: what they come to for cutting, the server's choices filled in.

    asked: how the caller said it; comes back with `Configured`.
    """

    options: DecodeOptions
    rules: Rules
    asked: object = None


@dataclass(frozen=True)
class End:
    """No audio follows."""


@dataclass(frozen=True)
class InterimHeard:
    """What the engine heard in the utterance from its start up to this sample."""

    piece_id: int
    text: str
    up_to: int


@dataclass(frozen=True)
class FinalHeard:
    """What the engine heard in a whole piece."""

    piece_id: int
    recognition: Recognition


@dataclass(frozen=True)
class FinalLost:
    """The engine cannot decode a piece, and will not be asked again."""

    piece_id: int
    error: TypelessError


Input = Frames | Judged | Finalize | Update | End | InterimHeard | FinalHeard | FinalLost


# ---- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decode:
    """Decode this piece; its final is wanted."""

    piece: Piece


@dataclass(frozen=True)
class Speculate:
    """This piece will be decoded unless speech goes on: beginning now saves time. is_likely: it will not go on."""

    piece: Piece
    is_likely: bool


@dataclass(frozen=True)
class Withdraw:
    """What was speculated on is no longer what it was."""

    piece_id: int


@dataclass(frozen=True)
class Utterance:
    """The utterance under way, for whoever wants an interim. Samples."""

    piece_id: int
    audio_start: int
    speech_start: int
    options: DecodeOptions


@dataclass(frozen=True)
class InterimDue:
    """The text so far of this utterance is wanted, up to this sample: `InterimHeard` may follow, before the final."""

    utterance: Utterance
    up_to: int


Effect = events.Event | Decode | Speculate | Withdraw | InterimDue


class Session:
    """One session. `apply` inputs in order; interims and finals may come in any order."""

    def __init__(
        self,
        options: DecodeOptions,
        rules: Rules,
        *,
        cadence: Cadence | None = None,
        stability: Callable[[], Stability] = Stability,
    ) -> None:
        """rules: for cutting; of which kind they are says whether this is LIVE or FILE.

        cadence: of interims, None for none. stability: of an utterance.
        """
        self.state = State.LISTENING
        self.options = options
        self.segments: list[Segment] = []
        self.suppressed: list[Suppressed] = []
        self.n_pieces = self.n_pieces_done = 0
        self.current: Utterance | None = None
        self.undecided: Piece | None = None  # the utterance may be over: `Judged` is to say so before anything else
        self._cadence = cadence
        self._next_due = 0
        self._n_frames = 0  # heard so far
        self._new_stability = stability
        self._cutter: Endpointer | Planner
        if isinstance(rules, EndpointOptions):
            self._cutter = Endpointer(rules)
        else:
            self._cutter = Planner(rules)
        self._is_file = isinstance(self._cutter, Planner)
        self._received = self._processed = self._final = self._dropped = 0
        self._frames_left: deque[float] = deque()  # not looked at while it is undecided
        self._pending: dict[int, Piece] = {}  # decoded or to be, in the order of time
        self._heard: dict[int, FinalHeard | FinalLost] = {}  # waiting for those before them
        self._stabilities: dict[int, Stability] = {}  # of utterances that are not said, by piece
        self._languages = LanguageTally()
        self._speech = 0
        self._queue_s = 0.0
        self._n_decoded = 0
        self._model = options.model
        self._raw_texts: list[str] = []
        self._effects: list[Effect] = []

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
        """Whether the utterance under way, if there is one, may be over."""
        return isinstance(self._cutter, Endpointer) and self._cutter.is_quiet

    @property
    def is_speaking(self) -> bool:
        """Whether someone speaks at the end of what was heard: to end the audio there could cut a word."""
        return self._cutter.is_speaking if isinstance(self._cutter, Planner) else self.current is not None

    @property
    def heard(self) -> int:
        """The sample up to which it is decided who speaks."""
        return min(self._n_frames * FRAME_SAMPLES, self._received)

    @property
    def final(self) -> int:
        """The sample before which nothing is needed any more."""
        return self._final

    def apply(self, input: Input) -> list[Effect]:
        """Take one input; what is to be done about it. Raises WrongState for one that the state does not take."""
        handler = TABLE[self.state].get(type(input))
        if handler is None:
            message = f"A stream that is {self.state.value} takes no {type(input).__name__}."
            raise WrongState(message, reason="STREAM_STATE")
        self._effects = []
        handler(self, input)
        self._settle()
        return self._effects

    # ---- audio and what the caller asks for ------------------------------------------------------------------

    def _frames(self, frames: Frames) -> None:
        assert frames.received >= self._received
        self._received = frames.received
        self._frames_left.extend(frames.probabilities)
        self._go_on()

    def _go_on(self) -> None:
        while self._frames_left and self.undecided is None:
            for turn in self._cutter.hear(self._frames_left.popleft()):
                self._turn(turn)
            self._n_frames += 1
            self._interim_due(self._n_frames * FRAME_SAMPLES)

    def _interim_due(self, heard: int) -> None:
        """Ask for an interim now and then; not while the speaker pauses, the final may be near."""
        if self._cadence is None or self.current is None or heard < self._next_due or self.is_quiet:
            return
        self._next_due = heard + self._cadence.samples_after(heard - self.current.speech_start)
        self._effects.append(InterimDue(self.current, min(heard, self._received)))

    def _judged(self, judged: Judged) -> None:
        if self.undecided is None or judged.piece_id != self.undecided.id:
            raise WrongState(f"Piece {judged.piece_id} is not undecided.", reason="STREAM_STATE")
        self._decide(is_over=judged.is_sure)

    def _decide(self, *, is_over: bool) -> None:
        assert isinstance(self._cutter, Endpointer)
        self.undecided = None
        for turn in self._cutter.decide(is_over=is_over):
            self._turn(turn)
        self._go_on()

    def _decide_at_once(self) -> None:
        """Whoever does not wait to be asked has the utterance end."""
        while self.undecided is not None:
            self._decide(is_over=True)

    def _finalize(self, _: Finalize) -> None:
        self._end_utterance()

    def _update(self, update: Update) -> None:
        self._decide_at_once()
        if isinstance(self._cutter, Planner):
            for planned in self._cutter.settle():  # what is over was said under the old options
                self._planned(planned)
        self.options = update.options
        self._reconfigure(update.rules)
        self._effects.append(events.Configured(update.options, update.asked))

    def _reconfigure(self, rules: Rules) -> None:
        match self._cutter, rules:
            case Endpointer(), EndpointOptions():
                self._cutter.reconfigure(rules)
            case Planner(), PlanOptions():
                self._cutter.reconfigure(rules)
            case _:
                raise AssertionError("a stream does not change its mode")

    def _end(self, _: End) -> None:
        self._end_utterance()
        self.state = State.ENDING

    def _end_utterance(self) -> None:
        self._decide_at_once()
        for turn in self._cutter.finalize(self._received):
            self._turn(turn)

    def _turn(self, turn: Turn | Planned) -> None:
        match turn:
            case Began():
                self._began(turn)
            case Paused():
                self._effects.append(Speculate(self._piece(turn.speech_end, turn.audio_end), turn.is_likely))
            case Resumed():
                assert self.current is not None
                self._effects.append(Withdraw(self.current.piece_id))
            case Undecided():
                self.undecided = self._piece(turn.speech_end, turn.audio_end)
            case Ended():
                self._ended(turn)
            case Planned():
                self._planned(turn)

    def _began(self, began: Began) -> None:
        self.state = State.SPEAKING
        self.current = Utterance(self.n_pieces, began.audio_start, began.onset, options=self.options)
        self._stabilities[self.current.piece_id] = self._new_stability()
        self._next_due = began.onset + (self._cadence.first_samples if self._cadence is not None else 0)
        self._effects.append(events.SpeechStart(began.onset / SAMPLE_RATE_HZ))

    def _ended(self, ended: Ended) -> None:
        speech_end = min(ended.speech_end, self._received)
        piece = self._piece(speech_end, ended.audio_end)
        self._effects.append(events.SpeechEnd(speech_end / SAMPLE_RATE_HZ))
        self._speech += speech_end - piece.speech_start
        self.state, self.current = State.LISTENING, None
        self._decode(piece)

    def _planned(self, planned: Planned) -> None:
        self._effects.append(events.SpeechStart(planned.speech_start / SAMPLE_RATE_HZ))
        self._effects.append(events.SpeechEnd(planned.speech_end / SAMPLE_RATE_HZ))
        self._speech += planned.speech_end - planned.speech_start
        span = (planned.speech_start, planned.speech_end, planned.audio_start, min(planned.audio_end, self._received))
        self._decode(Piece(self.n_pieces, *span, self.options))

    def _piece(self, speech_end: int, audio_end: int) -> Piece:
        assert self.current is not None
        now = self.current
        # The last frame of all is filled up with silence: a turn in it may lie beyond the audio.
        end = min(audio_end, self._received)
        return Piece(now.piece_id, now.speech_start, min(speech_end, end), now.audio_start, end, now.options)

    def _decode(self, piece: Piece) -> None:
        self.n_pieces = piece.id + 1
        self._pending[piece.id] = piece
        self._effects.append(Decode(piece))

    # ---- text ------------------------------------------------------------------------------------------------

    def _interim(self, heard: InterimHeard) -> None:
        """Of an utterance that is over, too: what it makes certain must not depend on when it comes."""
        stability = self._stabilities.get(heard.piece_id)
        if stability is None or not heard.text:
            return
        stable, unstable = stability.hear(heard.text)
        if self.current is not None and heard.piece_id == self.current.piece_id:
            self._processed = max(self._processed, heard.up_to)
            start_s, end_s = self.current.speech_start / SAMPLE_RATE_HZ, heard.up_to / SAMPLE_RATE_HZ
            self._effects.append(events.Interim(stable, unstable, start_s, max(start_s, end_s)))

    def _final_heard(self, heard: FinalHeard | FinalLost) -> None:
        if heard.piece_id not in self._pending or heard.piece_id in self._heard:
            raise WrongState(f"Piece {heard.piece_id} is not being decoded.", reason="STREAM_STATE")
        self._heard[heard.piece_id] = heard
        if isinstance(heard, FinalHeard):
            self._processed = max(self._processed, self._pending[heard.piece_id].audio_end)
        while self._pending and (first := next(iter(self._pending))) in self._heard:
            self._say(self._pending.pop(first), self._heard.pop(first))

    def _say(self, piece: Piece, heard: FinalHeard | FinalLost) -> None:
        stability = self._stabilities.pop(piece.id, None)
        committed = stability.committed if stability is not None else ""
        self.n_pieces_done += 1
        recognition = heard.recognition if isinstance(heard, FinalHeard) else None
        if isinstance(heard, FinalLost):
            self._dropped += piece.audio_end - piece.audio_start
            self._effects.append(events.Warned(heard.error))
        segments: list[Segment]
        if self._is_file:
            segments = finals.file_segments(piece, recognition) if recognition else []
        else:
            one = finals.utterance_segment(piece, recognition, committed)
            segments = [one] if one is not None else []
        if recognition is not None:
            self._count(piece, recognition)
        for segment in segments:
            shown = segment if piece.options.word_timestamps else replace(segment, words=())
            self._effects.append(events.Final(len(self.segments), shown))
            self.segments.append(segment)

    def _count(self, piece: Piece, recognition: Recognition) -> None:
        heard = recognition.transcript
        self.suppressed += finals.suppressed_in(piece, recognition)
        if heard.segments:
            seconds = (piece.speech_end - piece.speech_start) / SAMPLE_RATE_HZ
            self._languages.add(heard.language, heard.language_probability, seconds)
        self._queue_s += recognition.queue_s
        self._model = heard.model
        self._raw_texts.append(heard.raw_text)
        self._n_decoded += max(1, recognition.n_chunks)

    # ---- after every input ----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Move the cursors on, and complete what is complete. Finals of this input are already counted."""
        if self.state is State.ENDING and not self._pending:
            self._final = self._processed = self._received
            self.state = State.DONE
            self._effects.append(self._completed())
        if self.state is State.DONE:
            return
        waiting = next(iter(self._pending.values()), None)
        settled = waiting.audio_start if waiting is not None else self._cutter.settled
        if self.state is State.ENDING and waiting is None:
            settled = self._received
        self._final = max(self._final, min(settled, self._received))
        self._processed = max(self._processed, self._final)

    def _completed(self) -> events.Completed:
        transcript = finals.transcript_of(
            self.segments,
            self.suppressed,
            self._languages,
            audio_s=self._received / SAMPLE_RATE_HZ,
            speech_s=self._speech / SAMPLE_RATE_HZ,
            model=self._model,
            raw_text=joined(self._raw_texts),
        )
        return events.Completed(transcript, self._n_decoded, self._queue_s)


_AUDIO: Mapping[type, Callable[[Session, Any], None]] = {
    Frames: Session._frames,
    Finalize: Session._finalize,
    Update: Session._update,
    End: Session._end,
}
_TEXT: Mapping[type, Callable[[Session, Any], None]] = {
    FinalHeard: Session._final_heard,
    FinalLost: Session._final_heard,
}

TABLE: Mapping[State, Mapping[type, Callable[[Session, Any], None]]] = {
    State.LISTENING: {**_AUDIO, **_TEXT, InterimHeard: Session._interim},
    State.SPEAKING: {**_AUDIO, **_TEXT, InterimHeard: Session._interim, Judged: Session._judged},
    State.ENDING: {**_TEXT, InterimHeard: Session._interim},
    State.DONE: {InterimHeard: Session._interim},
}
