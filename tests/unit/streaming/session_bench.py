"""What the tests of sessions need: a session whose effects are kept, and frames of speech and silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.speech.transcript import Segment, Transcript, Word
from typeless_grpc.streaming import events
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.effects import Effect, Emit
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.inputs import End, EndpointDecision, Frames, Input
from typeless_grpc.streaming.modes import mode_of
from typeless_grpc.streaming.release import FinalDecoded
from typeless_grpc.streaming.requests import SegmentationOptions
from typeless_grpc.streaming.session import Session, State
from typeless_grpc.streaming.stability import Stability

FRAME_S = FRAME_SAMPLES / 16_000
LIVE = EndpointOptions(end_silence_s=10 * FRAME_S, low_confidence_silence_s=0.0, padding_s=4 * FRAME_S, context_s=0.0)
OPTIONS = DecodeOptions(language="en")
OFTEN = Cadence(interval_s=10 * FRAME_S, first_s=6 * FRAME_S)


def recognized(text: str, *words: Word) -> Recognition:
    segment = Segment(0.0, 1.0, text, "en", confidence=0.8, no_speech_probability=0.1, words=words)
    transcript = Transcript((segment,) if text else (), (), "en", 1.0, 1.0, 1.0, "base")
    return Recognition(transcript, queue_s=0.1, n_chunks=1)


def quick() -> Stability:
    """Words are committed as soon as two hypotheses agree."""
    return Stability(n_agreeing=2, hold_back=0)


class Run:
    """A session, its audio counted frame by frame, and all its effects; of `Emit` the event, with its cursors apart."""

    def __init__(
        self, segmentation: SegmentationOptions = LIVE, options: DecodeOptions = OPTIONS, **settings: Any
    ) -> None:
        self.session = Session(options, mode_of(segmentation), **settings)
        self.effects: list[Effect | events.Event] = []
        self.emitted: list[Emit] = []
        self.n_frames = 0

    def give(self, input: Input) -> list[Effect | events.Event]:
        effects = self.session.apply(input)
        self.emitted += [effect for effect in effects if isinstance(effect, Emit)]
        unwrapped = [effect.event if isinstance(effect, Emit) else effect for effect in effects]
        self.effects += unwrapped
        return unwrapped

    def frames(self, *runs: tuple[float, int]) -> list[Effect]:
        probabilities = [probability for probability, n in runs for _ in range(n)]
        self.n_frames += len(probabilities)
        return self.give(Frames(self.n_frames * FRAME_SAMPLES, probabilities))

    def of(self, *kinds: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kinds)]


def in_state(state: State) -> Session:
    run = Run(replace(LIVE, low_confidence_silence_s=20 * FRAME_S))
    run.frames((0.9, 20), (0.0, 20))  # one utterance is pending in every state but DONE
    run.give(EndpointDecision(0, is_endpoint=True))
    if state in (State.SPEAKING, State.UNDECIDED):
        run.frames((0.9, 20))
    if state is State.UNDECIDED:
        run.frames((0.0, 10))
    if state in (State.ENDING, State.DONE):
        run.give(End())
    if state is State.DONE:
        run.give(FinalDecoded(0, recognized("hello")))
    assert run.session.state is state
    return run.session
