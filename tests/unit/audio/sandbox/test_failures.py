"""The failure that follows from how a decoder process ended, and the error for its caller."""

from __future__ import annotations

import signal

import pytest

from typeless_grpc.audio.sandbox.decoder import OUT_OF_MEMORY
from typeless_grpc.audio.sandbox.failures import Ended, Failure, error_of, failure_of, stalled


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (signal.SIGSEGV, Failure.CRASHED),
        (signal.SIGILL, Failure.CRASHED),
        (signal.SIGXCPU, Failure.OUT_OF_CPU_TIME),
        (signal.SIGKILL, Failure.KILLED),
        (OUT_OF_MEMORY << 8, Failure.OUT_OF_MEMORY),
        (0, Failure.CRASHED),
        (1 << 8, Failure.CRASHED),
    ],
)
def test_the_failure_follows_from_the_status(status: int, failure: Failure):
    assert failure_of(Ended(status, 0.1)) is failure


def test_a_process_that_ended_with_the_fork_server_was_killed():
    assert failure_of(None) is Failure.KILLED


@pytest.mark.parametrize(
    ("ended", "failure"),
    [(Ended(9, 5.0), Failure.HUNG), (Ended(9, 0.1), Failure.KILLED), (None, Failure.KILLED)],
    ids=["it computed", "it had no core", "the fork server ended"],
)
def test_a_process_without_progress_hangs_only_if_it_had_a_core(ended: Ended | None, failure: Failure):
    assert stalled(ended, 30.0) is failure


@pytest.mark.parametrize("failure", Failure)
def test_only_what_is_not_the_inputs_fault_can_be_retried(failure: Failure):
    error = error_of(failure, "items[0].audio")
    assert error.retryable is (failure is Failure.KILLED)
    assert error.reason == ("DECODER_UNAVAILABLE" if failure is Failure.KILLED else "DECODER_FAILED")
