from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.errors import Overloaded, RateLimited


def test_calls_beyond_the_limit_are_refused_with_a_time_to_wait():
    admission = Admission(AdmissionOptions(max_calls=2))
    with admission.call("a"), admission.call("b"), pytest.raises(Overloaded) as caught, admission.call("c"):
        pytest.fail("let in")
    assert caught.value.retryable


def test_a_call_that_ended_makes_room_however_it_ended():
    admission = Admission(AdmissionOptions(max_calls=1))
    with pytest.raises(RuntimeError, match="failed"), admission.call("a"):
        raise RuntimeError("failed")
    with admission.call("a"):
        pass


def test_a_refused_call_takes_no_room():
    admission = Admission(AdmissionOptions(max_calls=1))
    with admission.call("a"):
        for _ in range(5):
            with pytest.raises(Overloaded), admission.call("a"):
                pass
    with admission.call("a"):
        pass


def test_a_check_refuses_what_a_call_would_and_takes_no_room():
    admission = Admission(AdmissionOptions(max_calls=2))
    for _ in range(5):
        admission.check("a")
    with admission.call("a"):
        admission.check("b")
        with admission.call("b"), pytest.raises(Overloaded) as caught:
            admission.check("c")
    assert caught.value.retryable
    assert admission.n_callers == 0


def test_audio_beyond_the_limit_is_refused_while_others_hold_some():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(60.0, "a"), admission.audio(40.0, "b"):
        with pytest.raises(Overloaded) as caught, admission.audio(0.1, "c"):
            pytest.fail("let in")
        assert caught.value.retryable
    with admission.audio(99.0, "a"):
        pass


def test_one_recording_alone_is_let_in_however_long():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(1000.0, "a"), admission.audio(25.0, "b"), pytest.raises(Overloaded), admission.audio(1.0, "c"):
        pass


@given(st.lists(st.floats(0.01, 30.0), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_recordings_that_left_in_any_order_leave_nothing_behind(lengths_s: list[float], random):
    admission = Admission(AdmissionOptions(max_audio_s=1000.0))
    held = []
    for length_s in lengths_s:
        stack = ExitStack()
        stack.enter_context(admission.audio(length_s, "a"))
        held.append(stack)
    random.shuffle(held)
    for stack in held:
        stack.close()
    with admission.audio(750.0, "b"), admission.audio(250.0, "c"):  # all of it
        pass


def fill(admission: Admission, caller: str, stack: ExitStack) -> int:
    """Let a caller make calls until it is refused for its own share; how many there are then."""
    for n_inside in itertools.count():
        with suppress(RateLimited):
            stack.enter_context(admission.call(caller))
            continue
        with pytest.raises(RateLimited) as caught, admission.call(caller):
            pytest.fail("let in")
        refusal = caught.value
        assert (refusal.reason, refusal.subject, refusal.retryable) == ("SHARE_USED_UP", caller, True)
        return n_inside
    raise AssertionError("never refused")


def test_a_caller_of_a_thousand_calls_leaves_room_for_others_and_for_others_again():
    clock = FakeClock()
    admission = Admission(AdmissionOptions(max_calls=64), clock)
    with ExitStack() as stack:
        assert fill(admission, "many", stack) == 48
        assert fill(admission, "as many", stack) == 12
        for name in ("one", "another", "a third"):
            stack.enter_context(admission.call(name))
    clock.advance(60.0)  # nobody has retried
    with ExitStack() as stack:
        assert fill(admission, "as many", stack) == 48


def test_a_callers_audio_leaves_room_for_others():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(50.0, "many"), admission.audio(25.0, "many"):
        with pytest.raises(RateLimited) as caught, admission.audio(1.0, "many"):
            pytest.fail("let in")
        assert (caught.value.reason, caught.value.retryable) == ("SHARE_USED_UP", True)
        with pytest.raises(Overloaded), admission.audio(30.0, "one"):
            pytest.fail("let in")
        with admission.audio(20.0, "one"):
            pass


def test_a_caller_is_forgotten_with_the_last_of_its_calls():
    admission = Admission(AdmissionOptions())
    for number in range(3):
        with admission.call(f"caller {number}"), admission.audio(1.0, f"caller {number}"):
            pass
        with pytest.raises(Overloaded), admission.audio(1e6, "one"), admission.audio(1e6, "two"):
            pytest.fail("let in")
    assert admission.n_callers == 0


def test_a_recording_that_grows_step_by_step_may_hold_what_it_could_have_at_once():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(10.0, "others"):
        growing = admission.reserve("one")
        for audio_s in range(1, 76):
            growing.grow_to(float(audio_s))
        assert admission.room_s == pytest.approx(15.0)
        growing.grow_to(500.0)  # counted as a share at most, as a recording that comes at once
        assert admission.room_s == pytest.approx(15.0)
        growing.grow_to(20.0)
        assert admission.room_s == pytest.approx(70.0)
        growing.close()
        growing.close()
        assert admission.room_s == pytest.approx(90.0)
    assert admission.n_callers == 0


def test_recordings_that_grow_at_once_stay_within_the_limit_and_one_of_them_continues():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    first, second = admission.reserve("a"), admission.reserve("b")
    first.grow_to(50.0)
    second.grow_to(40.0)
    with pytest.raises(Overloaded):
        first.grow_to(61.0)
    assert admission.room_s == pytest.approx(10.0)
    first.close()
    second.grow_to(61.0)
    second.close()
    assert (admission.room_s, admission.n_callers) == (100.0, 0)


def test_a_callers_recordings_that_grow_leave_room_for_others():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    growing = [admission.reserve("many") for _ in range(10)]
    refusals = []
    for audio_s in range(1, 50):
        for one in growing:
            try:
                one.grow_to(float(audio_s))
            except RateLimited as error:
                refusals.append(error)
    assert refusals
    assert admission.room_s == pytest.approx(25.0, abs=1.0)


def test_threads_that_grow_and_release_lose_nothing():
    admission = Admission(AdmissionOptions(max_audio_s=1e9))

    def grow(number: int) -> None:
        for _ in range(50):
            one = admission.reserve(f"caller {number % 3}")
            for audio_s in range(1, 50):
                one.grow_to(audio_s / 3)
            one.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(grow, range(8)))
    assert (admission.room_s, admission.n_callers) == (1e9, 0)
