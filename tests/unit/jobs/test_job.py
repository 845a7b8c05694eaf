"""Jobs as values: states, faults, retries, and transcripts put together."""

from __future__ import annotations

import itertools

import pytest

from typeless_grpc import errors
from typeless_grpc.jobs.job import TRANSITIONS, Failure, RetryPolicy, State, is_transient, joined, states_before
from typeless_grpc.jobs.worker import settled_language
from typeless_grpc.speech.transcript import Segment, Transcript

LEGAL = {
    ("PENDING", "PROCESSING"),
    ("PENDING", "CANCELLED"),
    ("PROCESSING", "PROCESSING"),
    ("PROCESSING", "PENDING"),
    ("PROCESSING", "COMPLETED"),
    ("PROCESSING", "FAILED"),
    ("PROCESSING", "CANCELLED"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)), ids=lambda state: state.name)
def test_each_change_of_state_is_legal_or_not(before: State, after: State):
    is_legal = (before.name, after.name) in LEGAL
    assert (after in TRANSITIONS[before]) == is_legal
    assert (before in states_before(after)) == is_legal


@pytest.mark.parametrize(("state", "is_final"), [(s, s.name in ("COMPLETED", "FAILED", "CANCELLED")) for s in State])
def test_an_ended_job_stays_so(state: State, is_final: bool):
    assert state.is_final == is_final


TRANSIENT = [
    errors.Overloaded("full"),
    errors.EngineFailed("broken"),
    errors.SourceUnavailable("away", reason="STORE_UNAVAILABLE"),
    errors.DeadlineExceeded("late"),
    OSError("disk"),
    RuntimeError("a bug"),
]
PERMANENT = [
    errors.InvalidInput("audio.content", "no audio", reason="AUDIO_UNDECODABLE"),
    errors.NotFound("no model", reason="MODEL_NOT_FOUND"),
    errors.WrongState("unfinished", reason="UPLOAD_INCOMPLETE"),
    errors.TooLarge("big", reason="X"),
]


@pytest.mark.parametrize("error", TRANSIENT + PERMANENT, ids=lambda error: type(error).__name__)
def test_only_transient_faults_are_retried(error: Exception):
    assert is_transient(error) == (error in TRANSIENT)
    assert (RetryPolicy().delay_s(1, error) is not None) == (error in TRANSIENT)


def test_retry_delays_grow_up_to_a_limit_and_end():
    policy = RetryPolicy(max_attempts=6, first_delay_s=2.0, max_delay_s=100.0)
    waits = [policy.delay_s(n, errors.EngineFailed("broken")) for n in range(1, 8)]
    assert waits == [2.0, 8.0, 32.0, 100.0, 100.0, None, None]


def test_the_retry_delay_of_an_error_is_used():
    assert RetryPolicy(first_delay_s=2.0).delay_s(1, errors.Overloaded("full", retry_after_s=30.0)) == 30.0


def test_a_failure_keeps_the_fields_of_an_error():
    failure = Failure.of(errors.Overloaded("Full.", retry_after_s=2.0))
    assert failure == Failure("Overloaded", "OVERLOADED", "Full.", 2.0)
    assert type(failure.error) is errors.Overloaded


def test_the_failure_of_an_unforeseen_error_hides_its_text():
    failure = Failure.of(ValueError("secret text of a caller"))
    assert "secret" not in failure.message
    assert (failure.reason, type(failure.error)) == ("INTERNAL", errors.EngineFailed)


@pytest.mark.parametrize("kind", ["Unheard", "FieldViolation", "annotations"])
def test_a_failure_of_an_unknown_class_becomes_engine_failed(kind: str):
    assert type(Failure(kind, "X", "x").error) is errors.EngineFailed


def part(text: str, language: str, speech_s: float, probability: float = 0.9) -> Transcript:
    segment = Segment(0.0, 1.0, text, language, 0.9, 0.1)
    return Transcript((segment,) if text else (), (), language, probability, 10.0, speech_s, "tiny")


def test_a_recordings_language_is_that_of_most_of_its_speech():
    whole = joined([part("hola", "es", 2.0, 0.7), part("hello", "en", 6.0, 0.95), part("there", "en", 1.0, 1.0)])
    assert (whole.language, whole.language_probability) == ("en", pytest.approx((6 * 0.95 + 1.0) / 7))
    assert (whole.text, whole.audio_s, whole.speech_s, whole.model) == ("hola hello there", 30.0, 9.0, "tiny")


def test_a_recording_without_chunks_or_speech_is_empty():
    assert joined([], "tiny") == Transcript((), (), "", 0.0, 0.0, 0.0, "tiny")
    assert joined([part("", "", 0.0, 0.0)]).language == ""


@pytest.mark.parametrize(("speech_s", "probability", "settled"), [(2.0, 0.9, "en"), (1.4, 0.9, ""), (6.0, 0.7, "")])
def test_a_language_is_settled_once_it_is_clear(speech_s: float, probability: float, settled: str):
    assert settled_language(part("hello", "en", speech_s, probability)) == settled
