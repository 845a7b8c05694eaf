"""The session's state machine: every input in every state, and which event comes when."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.streaming.session_bench import FRAME_S, LIVE, OFTEN, OPTIONS, Run, in_state, quick, recognized
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.errors import EngineFailed, WrongState
from typeless_grpc.speech.transcript import Segment, Transcript, Word
from typeless_grpc.streaming import events
from typeless_grpc.streaming.effects import CancelSpeculation, Decode, InterimDue, Speculate
from typeless_grpc.streaming.inputs import End, EndpointDecision, Finalize, Frames, InterimDecoded
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.release import FinalDecoded, FinalFailed
from typeless_grpc.streaming.requests import Update
from typeless_grpc.streaming.session import TRANSITIONS, State

INPUTS = {
    Frames: Frames(100 * FRAME_SAMPLES, [0.0]),
    Finalize: Finalize(),
    Update: Update(DecodeOptions(language="fr"), LIVE),
    End: End(),
    InterimDecoded: InterimDecoded(0, "hello", 20 * FRAME_SAMPLES),
    FinalDecoded: FinalDecoded(0, recognized("hello")),
    FinalFailed: FinalFailed(0, EngineFailed("no")),
    EndpointDecision: EndpointDecision(1, is_endpoint=True),
}
LEGAL = {
    State.LISTENING: set(INPUTS) - {EndpointDecision},
    State.SPEAKING: set(INPUTS) - {EndpointDecision},
    State.UNDECIDED: set(INPUTS),
    State.ENDING: {InterimDecoded, FinalDecoded, FinalFailed},
    State.DONE: {InterimDecoded},
}


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_every_state_takes_or_refuses_every_input(state, kind):
    session = in_state(state)
    if kind in LEGAL[state]:
        session.apply(INPUTS[kind])
    else:
        with pytest.raises(WrongState):
            session.apply(INPUTS[kind])
    assert set(TRANSITIONS[state]) & set(INPUTS) == LEGAL[state]


def test_an_utterance_is_a_start_a_speculation_an_end_and_a_segment():
    run = Run()
    run.frames((0.0, 10), (0.9, 20), (0.0, 10))
    assert [type(effect) for effect in run.effects] == [events.SpeechStart, Speculate, events.SpeechEnd, Decode]
    (decode,) = run.of(Decode)
    assert run.of(Speculate)[0].utterance == decode.utterance
    assert (decode.utterance.audio_start, decode.utterance.audio_end) == (6 * FRAME_SAMPLES, 34 * FRAME_SAMPLES)
    (final,) = run.give(FinalDecoded(0, recognized("hello")))
    assert isinstance(final, events.Final)
    assert (final.index, final.segment.text) == (0, "hello")
    assert (final.segment.start_s, final.segment.end_s) == (10 * FRAME_S, 30 * FRAME_S)


def test_resumed_speech_cancels_the_speculation():
    run = Run()
    run.frames((0.9, 20), (0.0, 5), (0.9, 5))
    assert run.of(Speculate, CancelSpeculation)[-1] == CancelSpeculation(0)


UNHURRIED = replace(LIVE, low_confidence_silence_s=20 * FRAME_S)


def undecided() -> Run:
    """A pause is long enough to end an utterance of high confidence, and the next utterance has begun."""
    run = Run(UNHURRIED)
    run.frames((0.9, 20), (0.0, 12), (0.9, 20), (0.0, 5))
    assert run.session.undecided == run.of(Speculate)[-1].utterance
    assert run.of(Decode) == []
    return run


def test_audio_behind_an_undecided_utterance_waits_for_its_text():
    run = undecided()
    run.give(EndpointDecision(0, is_endpoint=True))
    assert [decode.utterance.speech_end for decode in run.of(Decode)] == [20 * FRAME_SAMPLES]
    assert run.session.current is not None
    assert run.session.current.speech_start == 32 * FRAME_SAMPLES


def test_an_utterance_of_low_confidence_continues_with_the_next_audio():
    run = undecided()
    run.give(EndpointDecision(0, is_endpoint=False))
    assert run.of(Decode) == []
    run.give(End())
    assert [(one.utterance.speech_start, one.utterance.speech_end) for one in run.of(Decode)] == [
        (0, 52 * FRAME_SAMPLES)
    ]


@pytest.mark.parametrize("input", [Finalize(), End(), Update(OPTIONS, LIVE)], ids=lambda input: type(input).__name__)
def test_finalize_update_and_end_close_an_undecided_utterance_at_once(input):
    run = undecided()
    run.give(input)
    assert run.of(Decode)[0].utterance.speech_end == 20 * FRAME_SAMPLES
    assert run.session.undecided is None


def test_an_update_that_changes_nothing_leaves_an_undecided_utterance_undecided():
    run = undecided()
    assert run.give(Update(OPTIONS, UNHURRIED)) == [events.Configured(OPTIONS)]
    run.give(EndpointDecision(0, is_endpoint=False))
    assert run.of(Decode) == []


def test_only_the_undecided_utterance_can_be_decided():
    run = undecided()
    with pytest.raises(WrongState):
        run.give(EndpointDecision(1, is_endpoint=True))
    run.give(EndpointDecision(0, is_endpoint=True))
    with pytest.raises(WrongState):
        run.give(EndpointDecision(0, is_endpoint=True))


def test_finals_are_released_in_the_order_of_the_audio():
    run = Run()
    run.frames((0.9, 20), (0.0, 10), (0.9, 20), (0.0, 10))
    assert run.give(FinalDecoded(1, recognized("second"))) == []
    assert [final.segment.text for final in run.give(FinalDecoded(0, recognized("first")))] == ["first", "second"]


def test_an_utterance_is_decoded_once():
    run = Run()
    run.frames((0.9, 20), (0.0, 10))
    run.give(FinalDecoded(0, recognized("hello")))
    with pytest.raises(WrongState):
        run.give(FinalDecoded(0, recognized("hello again")))


def test_a_silent_stream_completes_without_text():
    run = Run()
    run.frames((0.0, 50))
    (completed,) = run.give(End())
    assert completed.transcript.text == ""
    assert completed.transcript.audio_s == 50 * FRAME_S
    assert run.session.state is State.DONE


def test_completed_comes_after_the_last_final_and_holds_them_all():
    run = Run()
    run.frames((0.9, 20), (0.0, 10), (0.9, 20))
    assert not [effect for effect in run.give(End()) if isinstance(effect, events.Completed)]
    run.give(FinalDecoded(0, recognized("one")))
    last, completed = run.give(FinalDecoded(1, recognized("two")))
    assert isinstance(last, events.Final)
    assert completed.transcript.segments == tuple(final.segment for final in run.of(events.Final))
    assert (completed.transcript.text, completed.transcript.model) == ("one two", "base")
    assert completed.n_chunks == 2


def test_committed_words_begin_the_segment_whatever_the_final_decode_returns():
    run = Run(stability=quick)
    run.frames((0.9, 20))
    for text in ("good morning", "good morning all"):
        run.give(InterimDecoded(0, text, run.n_frames * FRAME_SAMPLES))
    assert run.of(events.Interim)[-1].stable_text == "good morning"
    run.frames((0.0, 10))
    (final,) = run.give(FinalDecoded(0, recognized("good mourning all of you")))
    assert final.segment.text == "good morning all of you"


@pytest.mark.parametrize("has_words", [True, False])
def test_committed_words_are_released_even_if_the_final_is_empty_or_fails(has_words):
    run = Run(stability=quick)
    run.frames((0.9, 20))
    for _ in range(2):
        run.give(InterimDecoded(0, "good morning", run.n_frames * FRAME_SAMPLES))
    run.frames((0.0, 10))
    result = FinalDecoded(0, recognized("")) if has_words else FinalFailed(0, EngineFailed("broken"))
    assert [e.segment.text for e in run.give(result) if isinstance(e, events.Final)] == ["good morning"]


def test_words_are_those_of_the_text_with_times_of_the_stream():
    run = Run(options=replace(OPTIONS, word_timestamps=True), stability=quick)
    run.frames((0.0, 100), (0.9, 40))
    for _ in range(2):
        run.give(InterimDecoded(0, "good morning", run.n_frames * FRAME_SAMPLES))
    run.frames((0.0, 10))
    words = (Word("good", 0.1, 0.3, 0.9), Word("mourning", 0.3, 0.6, 0.4), Word("all", 0.7, 0.9, 0.9))
    (final,) = run.give(FinalDecoded(0, recognized("good mourning all", *words)))
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
    assert [decode.utterance.audio_end for decode in run.of(Speculate, Decode)] == [received, received]


def test_a_failed_utterance_is_a_warning_and_counts_as_dropped():
    run = Run()
    run.frames((0.9, 20), (0.0, 10))
    error = EngineFailed("broken")
    assert run.give(FinalFailed(0, error)) == [events.Warned(error)]
    assert run.session.cursors.dropped_s == 24 * FRAME_S


def test_words_that_were_not_requested_are_kept_for_renditions_only():
    run = Run()
    run.frames((0.9, 40), (0.0, 10))
    (final,) = run.give(FinalDecoded(0, recognized("good", Word("good", 0.1, 0.3, 0.9))))
    assert final.segment.words == ()
    (completed,) = run.give(End())
    assert [word.text for word in completed.transcript.segments[0].words] == ["good"]


def test_an_interim_of_a_closed_utterance_is_not_emitted():
    run = Run()
    run.frames((0.9, 20), (0.0, 10), (0.9, 20))
    assert run.give(InterimDecoded(0, "late", 20 * FRAME_SAMPLES)) == []
    assert len(run.give(InterimDecoded(1, "now", 50 * FRAME_SAMPLES))) == 1


def test_the_words_an_interim_commits_do_not_depend_on_when_it_comes():
    texts = []
    for is_late in (False, True):
        run = Run(stability=quick)
        run.frames((0.9, 20))
        run.give(InterimDecoded(0, "good morning", 10 * FRAME_SAMPLES))
        last = InterimDecoded(0, "good morning", 20 * FRAME_SAMPLES)
        if not is_late:
            run.give(last)
        run.frames((0.0, 10), (0.9, 20))
        if is_late:
            run.give(last)
        texts += [one.segment.text for one in run.give(FinalDecoded(0, recognized("good mourning")))]
    assert texts == ["good morning"] * 2


def test_interims_are_due_by_the_audio_and_not_while_the_speaker_pauses():
    run = Run(cadence=OFTEN)
    run.frames((0.0, 10), (0.9, 20), (0.0, 8), (0.9, 70), (0.0, 12), (0.9, 10))
    dues = [(due.utterance.id, due.up_to // FRAME_SAMPLES) for due in run.of(InterimDue)]
    assert dues == [(0, 16), (0, 26), (0, 39), (0, 49), (0, 59), (0, 69), (0, 79), (0, 91), (0, 105), (1, 126)]


def test_without_a_cadence_no_interims_are_due():
    run = Run()
    run.frames((0.9, 100))
    assert not run.of(InterimDue)


def test_an_update_is_confirmed_and_in_force_from_the_next_utterance_on():
    run = Run()
    run.frames((0.9, 20))
    french = replace(OPTIONS, language="fr")
    assert run.give(Update(french, LIVE)) == [events.Configured(french)]
    run.frames((0.0, 10), (0.9, 20), (0.0, 10))
    assert [decode.utterance.options.language for decode in run.of(Decode)] == ["en", "fr"]


def test_finalize_ends_the_utterance_and_between_utterances_changes_nothing():
    run = Run()
    assert run.give(Finalize()) == []
    run.frames((0.9, 20))
    assert [type(effect) for effect in run.give(Finalize())] == [events.SpeechEnd, Decode]
    assert run.give(Finalize()) == []


def test_a_file_is_cut_where_a_whole_recording_would_be():
    run = Run(PlanOptions())
    talk = [run_ for _ in range(40) for run_ in ((0.9, 120), (0.0, 12))]  # 3.8 s and a pause of 0.4 s, 40 times
    run.frames(*talk)
    run.give(End())
    chunks = [decode.utterance for decode in run.of(Decode)]
    assert 6 <= len(chunks) <= 14
    assert all((chunk.audio_end - chunk.audio_start) / 16_000 <= 30.0 for chunk in chunks)
    assert all(earlier.audio_end <= later.audio_start for earlier, later in itertools.pairwise(chunks))
    assert not run.of(Speculate, events.Interim)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.integers(1, 80)), min_size=1, max_size=20),
    st.lists(st.integers(1, 200), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.sampled_from([LIVE, PlanOptions()]),
)
def test_any_cutting_of_the_audio_gives_the_same_finals_and_interims(runs, sizes, random, segmentation):
    probabilities = [probability for probability, n in runs for _ in range(n)]
    whole, cut = Run(segmentation, cadence=OFTEN), Run(segmentation, cadence=OFTEN)
    whole.frames(*((p, 1) for p in probabilities))
    at = 0
    while at < len(probabilities):
        size = random.choice(sizes)
        cut.frames(*((p, 1) for p in probabilities[at : at + size]))
        at += size
    finals = []
    for run in (whole, cut):
        run.give(End())
        out = run.of(Decode)
        random.shuffle(out)
        for decode in out:
            run.give(FinalDecoded(decode.utterance.id, recognized(str(decode.utterance))))
        finals.append(run.of(events.Final, events.SpeechStart, events.SpeechEnd, events.Completed))
    assert [e for e in finals[0] if isinstance(e, events.Final)] == [
        e for e in finals[1] if isinstance(e, events.Final)
    ]
    assert finals[0][-1] == finals[1][-1]
    assert whole.of(InterimDue) == cut.of(InterimDue)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([LIVE, PlanOptions()]))
def test_cursors_only_grow_and_keep_their_order(seed, segmentation):
    random = Random(seed)
    run = Run(segmentation)
    waiting: list[int] = []
    last = run.session.cursors
    for _ in range(60):
        choice = random.random()
        if choice < 0.6:
            effects = run.frames((random.choice([0.0, 0.9]), random.randint(1, 60)))
        elif choice < 0.8 and waiting:
            effects = run.give(FinalDecoded(waiting.pop(random.randrange(len(waiting))), recognized("x")))
        else:
            effects = run.give(Finalize())
        waiting += [effect.utterance.id for effect in effects if isinstance(effect, Decode)]
        now = run.session.cursors
        assert now.received_s >= now.processed_s >= now.final_s
        assert now.processed_s >= last.processed_s
        assert now.final_s >= last.final_s
        for effect in effects:
            if isinstance(effect, events.Final):
                assert effect.segment.start_s >= last.final_s - 1e-6
        last = now


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([LIVE, PlanOptions()]))
def test_events_carry_cursors_that_never_reach_beyond_what_was_emitted(seed, segmentation):
    random = Random(seed)
    run = Run(segmentation)
    for _ in range(30):
        run.frames((random.choice([0.0, 0.9]), random.randint(1, 60)))
    run.give(End())
    waiting = [decode.utterance for decode in run.of(Decode)]
    random.shuffle(waiting)
    for utterance in waiting:
        middle_s = (utterance.speech_end - utterance.speech_start) / 32_000
        first = Segment(0.0, middle_s, "a", "en", 0.8, 0.1)
        segments = (first, replace(first, start_s=middle_s, end_s=2 * middle_s, text="b"))
        run.give(FinalDecoded(utterance.id, Recognition(Transcript(segments, (), "en", 1.0, 1.0, 1.0, "base"), 0.0, 1)))
    for earlier, later in itertools.pairwise(run.emitted):
        assert earlier.cursors.final_s <= later.cursors.final_s
        if isinstance(later.event, events.Final):
            assert earlier.cursors.final_s <= later.event.segment.start_s + 1e-6
    assert isinstance(run.emitted[-1].event, events.Completed)
