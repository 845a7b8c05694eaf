from __future__ import annotations

import grpc
import pytest

from typeless_grpc.client import CallFailed, RetryPolicy
from typeless_grpc.client.ledger import Ledger
from typeless_grpc.client.options import StreamOptions
from typeless_grpc.client.retry import SERVICE_CONFIG, RetryState
from typeless_grpc.client.stream import policy_for
from typeless_grpc.pb.v1.transcription_pb2 import StreamStarted, StreamTranscribeResponse


def failed(
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, reason: str = "", retry_after_s: float | None = None
) -> CallFailed:
    return CallFailed(code, "It failed.", reason=reason, retry_after_s=retry_after_s)


def rate_limited(retry_after_s: float | None) -> CallFailed:
    return failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_s)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def state(policy: RetryPolicy | None = None, clock: Clock | None = None, fraction: float = 0.0) -> RetryState:
    return RetryState(policy, clock=clock or Clock(), random_fraction=lambda: fraction)


def waits_s(ours: RetryState, error: CallFailed, n: int) -> list[float]:
    return [ours.wait_s(error) for _ in range(n)]


CUT = failed(grpc.StatusCode.CANCELLED)
RESET = failed(grpc.StatusCode.INTERNAL)
HALF_AN_ANSWER = failed(grpc.StatusCode.UNKNOWN)
STORE = failed(reason="STORE_UNAVAILABLE", retry_after_s=30.0)
DRAINING = failed(reason="DRAINING", retry_after_s=1.0)
SHARE = failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARE_USED_UP", 0.5)
OFFSET = failed(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_OFFSET_MISMATCH")


@pytest.mark.parametrize(
    ("error", "expected_s"),
    [
        (failed(), [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]),
        (CUT, [0.2, 0.4]),
        (RESET, [0.2, 0.4]),
        (HALF_AN_ANSWER, [0.2, 0.4]),
        (STORE, [30.0, 30.0]),
        (DRAINING, [0.2, 0.4]),
        (rate_limited(12.5), [12.5] * 9),
        (SHARE, [0.5, 0.5]),
        (OFFSET, [0.0] * 9),
    ],
    ids=["no server", "cut", "reset", "half an answer", "store", "draining", "rate", "share", "offset"],
)
def test_the_wait_follows_backoff_and_retry_info(error: CallFailed, expected_s: list[float]):
    assert waits_s(state(), error, len(expected_s)) == pytest.approx(expected_s)


@pytest.mark.parametrize("error", [failed(), rate_limited(12.5), OFFSET], ids=["no server", "rate", "offset"])
def test_the_tenth_failure_in_a_row_is_raised(error: CallFailed):
    ours = state()
    waits_s(ours, error, 9)
    with pytest.raises(CallFailed) as caught:
        ours.wait_s(error)
    assert caught.value is error


def test_progress_starts_the_count_and_the_backoff_again():
    ours = state()
    waits_s(ours, failed(), 9)
    ours.progressed()
    assert waits_s(ours, failed(), 9)[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "error",
    [
        failed(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        failed(grpc.StatusCode.INTERNAL, "INTERNAL"),
        failed(grpc.StatusCode.DEADLINE_EXCEEDED),
        failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_PENDING_JOBS", 60.0),
        rate_limited(3600.0),
        rate_limited(None),
    ],
    ids=["invalid", "unforeseen", "deadline", "other bound", "too long", "no time given"],
)
def test_an_error_that_waiting_does_not_mend_is_raised_at_once(error: CallFailed):
    with pytest.raises(CallFailed) as caught:
        state().wait_s(error)
    assert caught.value is error


@pytest.mark.parametrize("error", [failed(), STORE, rate_limited(12.5)], ids=["backoff", "retry info", "quota"])
def test_jitter_only_lengthens_a_wait_and_by_a_bounded_part(error: CallFailed):
    shortest_s, longest_s = state().wait_s(error), state(fraction=1.0).wait_s(error)
    assert longest_s == pytest.approx(1.2 * shortest_s)


def test_no_attempt_begins_after_the_total_time():
    clock = Clock()
    ours = state(RetryPolicy(max_attempts=None, first_delay_s=4.0, max_delay_s=4.0, max_total_s=10.0), clock, 1.0)
    waited_s = [ours.wait_s(failed())]
    clock.now_s += 4.8
    waited_s.append(ours.wait_s(failed()))
    clock.now_s += 4.8
    assert waited_s == pytest.approx([4.8, 4.8])
    with pytest.raises(CallFailed):
        ours.wait_s(failed())


def test_jitter_does_not_pass_the_total_time():
    assert state(RetryPolicy(first_delay_s=4.5, max_total_s=5.0), fraction=1.0).wait_s(failed()) == pytest.approx(5.0)


def test_the_first_failure_after_progress_has_the_whole_time_again():
    clock = Clock()
    ours = state(RetryPolicy(first_delay_s=1.0, max_total_s=2.0), clock)
    ours.wait_s(failed())
    ours.progressed()
    clock.now_s += 60.0
    assert ours.wait_s(failed()) == pytest.approx(1.0)


def test_grpc_repeats_only_calls_that_change_nothing():
    (methods,) = SERVICE_CONFIG["methodConfig"]
    names = {name["method"] for name in methods["name"]}
    assert names == {"Transcribe", "BatchTranscribe", "GetServerInfo", "ListModels"}
    assert methods["retryPolicy"]["maxAttempts"] == 4


def ledger(*, is_open: bool, resume_window_s: int = 60) -> Ledger:
    ours = Ledger(StreamOptions())
    if is_open:
        started = StreamStarted(session_id="session")
        started.resume_window.seconds = resume_window_s
        ours.take(StreamTranscribeResponse(sequence=1, started=started))
    return ours


def test_an_open_session_is_resumed_until_its_window_is_over():
    clock = Clock()
    policy = policy_for(ledger(is_open=True, resume_window_s=30), reconnect=True)
    ours = state(policy, clock)
    for _ in range(18):
        clock.now_s += ours.wait_s(failed())
    assert clock.now_s - Clock.now_s == pytest.approx(29.1)
    with pytest.raises(CallFailed):
        ours.wait_s(failed())


def test_an_open_session_waits_for_its_callers_quota():
    assert state(policy_for(ledger(is_open=True), reconnect=True)).wait_s(rate_limited(6.0)) == pytest.approx(6.0)


def test_a_session_that_cannot_be_opened_is_given_up():
    ours = state(policy_for(ledger(is_open=False), reconnect=True))
    assert waits_s(ours, failed(), 3) == pytest.approx([0.1, 0.2, 0.4])
    with pytest.raises(CallFailed):
        ours.wait_s(failed())


@pytest.mark.parametrize(
    ("is_open", "resume_window_s", "reconnect", "error"),
    [
        (False, 60, True, rate_limited(6.0)),
        (True, 5, True, rate_limited(6.0)),
        (True, 60, False, failed()),
        (True, 60, True, rate_limited(None)),
    ],
    ids=["nothing to lose", "the session would expire", "not wanted", "no time given"],
)
def test_a_stream_raises_what_waiting_does_not_mend(
    is_open: bool, resume_window_s: int, reconnect: bool, error: CallFailed
):
    policy = policy_for(ledger(is_open=is_open, resume_window_s=resume_window_s), reconnect=reconnect)
    with pytest.raises(CallFailed) as caught:
        state(policy).wait_s(error)
    assert caught.value is error
