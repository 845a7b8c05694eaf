from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.errors import Overloaded


def test_calls_beyond_the_limit_are_refused_and_told_to_come_again():
    admission = Admission(AdmissionOptions(max_calls=2))
    with admission.call(), admission.call(), pytest.raises(Overloaded) as caught, admission.call():
        pytest.fail("let in")
    assert caught.value.retryable


def test_a_call_that_ended_makes_room_however_it_ended():
    admission = Admission(AdmissionOptions(max_calls=1))
    with pytest.raises(RuntimeError, match="failed"), admission.call():
        raise RuntimeError("failed")
    with admission.call():
        pass


def test_a_refused_call_takes_no_room():
    admission = Admission(AdmissionOptions(max_calls=1))
    with admission.call():
        for _ in range(5):
            with pytest.raises(Overloaded), admission.call():
                pass
    with admission.call():
        pass


def test_audio_beyond_the_limit_is_refused_while_others_hold_some():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(60.0), admission.audio(40.0):
        with pytest.raises(Overloaded) as caught, admission.audio(0.1):
            pytest.fail("let in")
        assert caught.value.retryable
    with admission.audio(99.0):
        pass


def test_one_recording_alone_is_let_in_however_long():
    admission = Admission(AdmissionOptions(max_audio_s=100.0))
    with admission.audio(1000.0), pytest.raises(Overloaded), admission.audio(1.0):
        pass


@given(st.lists(st.floats(0.01, 30.0), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_recordings_that_left_in_any_order_leave_nothing_behind(lengths_s: list[float], random):
    admission = Admission(AdmissionOptions(max_audio_s=1000.0))
    held = []
    for length_s in lengths_s:
        stack = ExitStack()
        stack.enter_context(admission.audio(length_s))
        held.append(stack)
    random.shuffle(held)
    for stack in held:
        stack.close()
    with admission.audio(1e6):  # alone: let in only where nothing is held
        pass
