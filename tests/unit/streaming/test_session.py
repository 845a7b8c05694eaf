"""The state table: every input in every state, and what is said in which order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.errors import EngineFailed, WrongState
from typeless_grpc.speech.transcript import Segment, Transcript, Word
from typeless_grpc.streaming import events
from typeless_grpc.streaming.cadence import Cadence
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.session import (
    TABLE,
    Decode,
    Effect,
    End,
    FinalHeard,
    Finalize,
    FinalLost,
    Frames,
    Input,
    InterimDue,
    InterimHeard,
    Judged,
    Session,
    Speculate,
    State,
    Update,
    Withdraw,
)
from typeless_grpc.streaming.stability import Stability

FRAME_S = FRAME_SAMPLES / 16_000
RULES = EndpointOptions(end_silence_s=10 * FRAME_S, doubtful_silence_s=0.0, padding_s=4 * FRAME_S, context_s=0.0)
ASKED = DecodeOptions(language="en")
OFTEN = Cadence(interval_s=10 * FRAME_S, first_s=6 * FRAME_S)


def recognized(text: str, *words: Word) -> Recognition:
    segment = Segment(0.0, 1.0, text, "en", confidence=0.8, no_speech_probability=0.1, words=words)
    transcript = Transcript((segment,) if text else (), (), "en", 1.0, 1.0, 1.0, "base")
    return Recognition(transcript, queue_s=0.1, n_chunks=1)


def sure() -> Stability:
    """Words are certain as soon as two hypotheses agree."""
    return Stability(n_agreeing=2, hold_back=0)


class Run:
    """A session, its audio counted frame by frame, and all its effects."""

    def __init__(
        self, rules: EndpointOptions | PlanOptions = RULES, asked: DecodeOptions = ASKED, **options: Any
    ) -> None:
        self.session = Session(asked, rules, **options)
        self.effects: list[Effect] = []
        self.n_frames = 0

    def give(self, input: Input) -> list[Effect]:
        effects = self.session.apply(input)
        self.effects += effects
        return effects

    def hear(self, *runs: tuple[float, int]) -> list[Effect]:
        probabilities = [probability for probability, n in runs for _ in range(n)]
        self.n_frames += len(probabilities)
        return self.give(Frames(self.n_frames * FRAME_SAMPLES, probabilities))

    def of(self, *kinds: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kinds)]


def in_state(state: State) -> Session:
    run = Run()
    run.hear((0.9, 20), (0.0, 10))  # one piece is pending in every state but DONE
    if state is State.SPEAKING:
        run.hear((0.9, 20))
    if state in (State.ENDING, State.DONE):
        run.give(End())
    if state is State.DONE:
        run.give(FinalHeard(0, recognized("hello")))
    assert run.session.state is state
    return run.session


INPUTS = {
    Frames: Frames(100 * FRAME_SAMPLES, [0.0]),
    Finalize: Finalize(),
    Update: Update(DecodeOptions(language="fr"), RULES),
    End: End(),
    InterimHeard: InterimHeard(0, "hello", 20 * FRAME_SAMPLES),
    FinalHeard: FinalHeard(0, recognized("hello")),
    FinalLost: FinalLost(0, EngineFailed("no")),
    Judged: Judged(1, is_sure=True),
}
LEGAL = {
    State.LISTENING: set(INPUTS) - {Judged},
    State.SPEAKING: set(INPUTS),
    State.ENDING: {InterimHeard, FinalHeard, FinalLost},
    State.DONE: {InterimHeard},
}


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_every_input_in_every_state_is_taken_or_refused(state, kind):
    session = in_state(state)
    if kind in LEGAL[state] - {Judged}:
        session.apply(INPUTS[kind])
    else:
        with pytest.raises(WrongState):
            session.apply(INPUTS[kind])
    assert set(TABLE[state]) == LEGAL[state]


def test_an_utterance_is_start_speculation_end_and_its_segment():
    run = Run()
    run.hear((0.0, 10), (0.9, 20), (0.0, 10))
    assert [type(effect) for effect in run.effects] == [events.SpeechStart, Speculate, events.SpeechEnd, Decode]
    (decode,) = run.of(Decode)
    assert run.of(Speculate)[0].piece == decode.piece
    assert (decode.piece.audio_start, decode.piece.audio_end) == (6 * FRAME_SAMPLES, 34 * FRAME_SAMPLES)
    (final,) = run.give(FinalHeard(0, recognized("hello")))
    assert isinstance(final, events.Final)
    assert (final.index, final.segment.text) == (0, "hello")
    assert (final.segment.start_s, final.segment.end_s) == (10 * FRAME_S, 30 * FRAME_S)


def test_speech_that_goes_on_withdraws_the_guess():
    run = Run()
    run.hear((0.9, 20), (0.0, 5), (0.9, 5))
    assert run.of(Speculate, Withdraw)[-1] == Withdraw(0)


def undecided() -> Run:
    """A pause is long enough to end an utterance whose text can be trusted, and another one is said already."""
    run = Run(replace(RULES, doubtful_silence_s=20 * FRAME_S))
    run.hear((0.9, 20), (0.0, 12), (0.9, 20), (0.0, 5))
    assert run.session.undecided == run.of(Speculate)[-1].piece
    assert run.of(Decode) == []
    return run


def test_what_comes_after_an_utterance_that_may_be_over_waits_for_its_text():
    run = undecided()
    run.give(Judged(0, is_sure=True))
    assert [decode.piece.speech_end for decode in run.of(Decode)] == [20 * FRAME_SAMPLES]
    assert run.session.current is not None
    assert run.session.current.speech_start == 32 * FRAME_SAMPLES


def test_an_utterance_of_doubtful_text_goes_on_with_what_comes():
    run = undecided()
    run.give(Judged(0, is_sure=False))
    assert run.of(Decode) == []
    run.give(End())
    assert [(one.piece.speech_start, one.piece.speech_end) for one in run.of(Decode)] == [(0, 52 * FRAME_SAMPLES)]


@pytest.mark.parametrize("input", [Finalize(), End(), Update(ASKED, RULES)], ids=lambda input: type(input).__name__)
def test_whoever_does_not_wait_for_the_text_has_the_utterance_end(input):
    run = undecided()
    run.give(input)
    assert run.of(Decode)[0].piece.speech_end == 20 * FRAME_SAMPLES
    assert run.session.undecided is None


def test_only_the_utterance_that_may_be_over_can_be_judged():
    run = undecided()
    with pytest.raises(WrongState):
        run.give(Judged(1, is_sure=True))
    run.give(Judged(0, is_sure=True))
    with pytest.raises(WrongState):
        run.give(Judged(0, is_sure=True))


def test_finals_are_said_in_the_order_of_time():
    run = Run()
    run.hear((0.9, 20), (0.0, 10), (0.9, 20), (0.0, 10))
    assert run.give(FinalHeard(1, recognized("second"))) == []
    assert [final.segment.text for final in run.give(FinalHeard(0, recognized("first")))] == ["first", "second"]


def test_a_piece_is_decoded_once():
    run = Run()
    run.hear((0.9, 20), (0.0, 10))
    run.give(FinalHeard(0, recognized("hello")))
    with pytest.raises(WrongState):
        run.give(FinalHeard(0, recognized("hello again")))


def test_silence_completes_without_a_word():
    run = Run()
    run.hear((0.0, 50))
    (completed,) = run.give(End())
    assert completed.transcript.text == ""
    assert completed.transcript.audio_s == 50 * FRAME_S
    assert run.session.state is State.DONE


def test_completed_comes_after_the_last_final_and_holds_them_all():
    run = Run()
    run.hear((0.9, 20), (0.0, 10), (0.9, 20))
    assert not [effect for effect in run.give(End()) if isinstance(effect, events.Completed)]
    run.give(FinalHeard(0, recognized("one")))
    last, completed = run.give(FinalHeard(1, recognized("two")))
    assert isinstance(last, events.Final)
    assert completed.transcript.segments == tuple(final.segment for final in run.of(events.Final))
    assert (completed.transcript.text, completed.transcript.model) == ("one two", "base")
    assert completed.n_chunks == 2


def test_certain_words_begin_the_segment_whatever_the_final_says():
    run = Run(stability=sure)
    run.hear((0.9, 20))
    for text in ("good morning", "good morning all"):
        run.give(InterimHeard(0, text, run.n_frames * FRAME_SAMPLES))
    assert run.of(events.Interim)[-1].stable_text == "good morning"
    run.hear((0.0, 10))
    (final,) = run.give(FinalHeard(0, recognized("good mourning all of you")))
    assert final.segment.text == "good morning all of you"


@pytest.mark.parametrize("has_words", [True, False])
def test_certain_words_are_said_even_if_the_final_is_empty_or_lost(has_words):
    run = Run(stability=sure)
    run.hear((0.9, 20))
    for _ in range(2):
        run.give(InterimHeard(0, "good morning", run.n_frames * FRAME_SAMPLES))
    run.hear((0.0, 10))
    heard = FinalHeard(0, recognized("")) if has_words else FinalLost(0, EngineFailed("broken"))
    assert [e.segment.text for e in run.give(heard) if isinstance(e, events.Final)] == ["good morning"]


def test_words_are_those_of_the_text_with_times_of_the_stream():
    run = Run(asked=replace(ASKED, word_timestamps=True), stability=sure)
    run.hear((0.0, 100), (0.9, 40))
    for _ in range(2):
        run.give(InterimHeard(0, "good morning", run.n_frames * FRAME_SAMPLES))
    run.hear((0.0, 10))
    words = (Word("good", 0.1, 0.3, 0.9), Word("mourning", 0.3, 0.6, 0.4), Word("all", 0.7, 0.9, 0.9))
    (final,) = run.give(FinalHeard(0, recognized("good mourning all", *words)))
    assert [word.text for word in final.segment.words] == ["good", "morning", "all"]
    assert final.segment.words[1].start_s == pytest.approx(96 * FRAME_S + 0.3)
    assert all(
        final.segment.start_s <= word.start_s <= word.end_s <= final.segment.end_s for word in final.segment.words
    )


def test_nothing_reaches_beyond_audio_that_ends_within_a_frame():
    run = Run()
    received = 24 * FRAME_SAMPLES - 100
    run.give(Frames(received, [0.9] * 20 + [0.0] * 4))
    run.give(End())
    assert [decode.piece.audio_end for decode in run.of(Speculate, Decode)] == [received, received]


def test_a_lost_piece_is_a_warning_and_counts_as_dropped():
    run = Run()
    run.hear((0.9, 20), (0.0, 10))
    error = EngineFailed("broken")
    assert run.give(FinalLost(0, error)) == [events.Warned(error)]
    assert run.session.cursors.dropped_s == 24 * FRAME_S


def test_words_that_nobody_asked_for_are_kept_for_the_renditions_only():
    run = Run()
    run.hear((0.9, 40), (0.0, 10))
    (final,) = run.give(FinalHeard(0, recognized("good", Word("good", 0.1, 0.3, 0.9))))
    assert final.segment.words == ()
    (completed,) = run.give(End())
    assert [word.text for word in completed.transcript.segments[0].words] == ["good"]


def test_an_interim_of_an_utterance_that_is_over_is_shown_to_nobody():
    run = Run()
    run.hear((0.9, 20), (0.0, 10), (0.9, 20))
    assert run.give(InterimHeard(0, "late", 20 * FRAME_SAMPLES)) == []
    assert len(run.give(InterimHeard(1, "now", 50 * FRAME_SAMPLES))) == 1


def test_what_an_interim_makes_certain_does_not_depend_on_when_it_comes():
    texts = []
    for is_late in (False, True):
        run = Run(stability=sure)
        run.hear((0.9, 20))
        run.give(InterimHeard(0, "good morning", 10 * FRAME_SAMPLES))
        last = InterimHeard(0, "good morning", 20 * FRAME_SAMPLES)
        if not is_late:
            run.give(last)
        run.hear((0.0, 10), (0.9, 20))
        if is_late:
            run.give(last)
        texts += [one.segment.text for one in run.give(FinalHeard(0, recognized("good mourning")))]
    assert texts == ["good morning"] * 2


def test_interims_are_due_by_the_audio_and_not_while_the_speaker_pauses():
    run = Run(cadence=OFTEN)
    run.hear((0.0, 10), (0.9, 20), (0.0, 8), (0.9, 70), (0.0, 12), (0.9, 10))
    dues = [(due.utterance.piece_id, due.up_to // FRAME_SAMPLES) for due in run.of(InterimDue)]
    assert dues == [(0, 16), (0, 26), (0, 39), (0, 49), (0, 59), (0, 69), (0, 79), (0, 91), (0, 105), (1, 126)]


def test_nobody_who_wants_no_interims_has_them():
    run = Run()
    run.hear((0.9, 100))
    assert not run.of(InterimDue)


def test_an_update_is_answered_and_holds_from_the_next_utterance_on():
    run = Run()
    run.hear((0.9, 20))
    french = replace(ASKED, language="fr")
    assert run.give(Update(french, RULES)) == [events.Configured(french)]
    run.hear((0.0, 10), (0.9, 20), (0.0, 10))
    assert [decode.piece.options.language for decode in run.of(Decode)] == ["en", "fr"]


def test_finalize_ends_the_utterance_and_between_utterances_changes_nothing():
    run = Run()
    assert run.give(Finalize()) == []
    run.hear((0.9, 20))
    assert [type(effect) for effect in run.give(Finalize())] == [events.SpeechEnd, Decode]
    assert run.give(Finalize()) == []


def test_a_file_is_cut_where_a_whole_recording_would_be():
    run = Run(PlanOptions())
    talk = [run_ for _ in range(40) for run_ in ((0.9, 120), (0.0, 12))]  # 3.8 s and a pause of 0.4 s, 40 times
    run.hear(*talk)
    run.give(End())
    pieces = [decode.piece for decode in run.of(Decode)]
    assert 6 <= len(pieces) <= 14
    assert all((piece.audio_end - piece.audio_start) / 16_000 <= 30.0 for piece in pieces)
    assert all(earlier.audio_end <= later.audio_start for earlier, later in itertools.pairwise(pieces))
    assert not run.of(Speculate, events.Interim)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.integers(1, 80)), min_size=1, max_size=20),
    st.lists(st.integers(1, 200), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.sampled_from([RULES, PlanOptions()]),
)
def test_any_cutting_of_the_audio_gives_the_same_finals_and_interims(runs, sizes, random, rules):
    probabilities = [probability for probability, n in runs for _ in range(n)]
    whole, cut = Run(rules, cadence=OFTEN), Run(rules, cadence=OFTEN)
    whole.hear(*((p, 1) for p in probabilities))
    at = 0
    while at < len(probabilities):
        size = random.choice(sizes)
        cut.hear(*((p, 1) for p in probabilities[at : at + size]))
        at += size
    finals = []
    for run in (whole, cut):
        run.give(End())
        out = run.of(Decode)
        random.shuffle(out)
        for decode in out:
            run.give(FinalHeard(decode.piece.id, recognized(str(decode.piece))))
        finals.append(run.of(events.Final, events.SpeechStart, events.SpeechEnd, events.Completed))
    assert [e for e in finals[0] if isinstance(e, events.Final)] == [
        e for e in finals[1] if isinstance(e, events.Final)
    ]
    assert finals[0][-1] == finals[1][-1]
    assert whole.of(InterimDue) == cut.of(InterimDue)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([RULES, PlanOptions()]))
def test_cursors_only_grow_and_keep_their_order(seed, rules):
    random = Random(seed)
    run = Run(rules)
    waiting: list[int] = []
    last = run.session.cursors
    for _ in range(60):
        choice = random.random()
        if choice < 0.6:
            effects = run.hear((random.choice([0.0, 0.9]), random.randint(1, 60)))
        elif choice < 0.8 and waiting:
            effects = run.give(FinalHeard(waiting.pop(random.randrange(len(waiting))), recognized("x")))
        else:
            effects = run.give(Finalize())
        waiting += [effect.piece.id for effect in effects if isinstance(effect, Decode)]
        now = run.session.cursors
        assert now.received_s >= now.processed_s >= now.final_s
        assert now.processed_s >= last.processed_s
        assert now.final_s >= last.final_s
        for effect in effects:
            if isinstance(effect, events.Final):
                assert effect.segment.start_s >= last.final_s - 1e-6
        last = now
