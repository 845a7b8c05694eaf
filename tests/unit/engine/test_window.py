from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.engine.window import FULL, FULL_WINDOW_S, POLICIES, Size, WindowPolicy

POLICY = WindowPolicy(
    sizes=(Size(10.0, 8.0), Size(15.0, 13.0), Size(20.0, 18.0), Size(30.0, 30.0)), floor_s=15.0, retry_s=(20.0,)
)


@pytest.mark.parametrize(
    ("audio_s", "window_s"),
    [(0.0, 10.0), (8.0, 10.0), (8.01, 15.0), (13.0, 15.0), (18.0, 20.0), (18.1, 30.0), (29.0, 30.0), (30.0, 30.0)],
)
def test_the_smallest_window_that_leaves_the_margin_is_chosen(audio_s: float, window_s: float):
    assert POLICY.choose(audio_s, "en") == window_s


@pytest.mark.parametrize(
    ("audio_s", "ladder"),
    [
        (5.0, (10.0, 20.0, 30.0)),
        (17.0, (20.0, 30.0)),
        (18.5, (30.0,)),
        (30.0, (30.0,)),
    ],
)
def test_what_fails_is_tried_in_longer_windows_up_to_the_full_one(audio_s: float, ladder: tuple[float, ...]):
    assert POLICY.ladder(audio_s, "en") == ladder


@pytest.mark.parametrize("language", ["de", None])
def test_what_may_not_be_english_is_shown_in_no_smaller_window_than_the_floor(language: str | None):
    assert POLICY.choose(1.0, language) == 15.0
    assert POLICY.choose(15.0, language) == 20.0
    assert POLICY.ladder(1.0, language) == (15.0, 20.0, 30.0)


@pytest.mark.parametrize("language", ["en", None])
@pytest.mark.parametrize(
    "policy", [POLICY, POLICY.tightened(), *POLICIES.values()], ids=["of the tests", "tight", *POLICIES]
)
@given(audio_s=st.floats(0.0, FULL_WINDOW_S))
def test_every_ladder_grows_holds_the_audio_and_ends_with_the_full_window(
    policy: WindowPolicy, audio_s: float, language: str | None
):
    ladder = policy.ladder(audio_s, language)
    assert ladder[0] == policy.choose(audio_s, language)
    assert ladder[-1] == FULL_WINDOW_S
    assert all(shorter < longer for shorter, longer in itertools.pairwise(ladder))
    assert all(window_s >= audio_s for window_s in ladder)


@pytest.mark.parametrize(
    ("audio_s", "window_s"), [(1.0, 8.0), (6.0, 8.0), (6.01, 10.0), (8.01, 12.0), (10.01, 15.0), (14.0, 17.0)]
)
def test_live_speech_is_shown_in_tight_windows_if_it_is_english(audio_s: float, window_s: float):
    tight = POLICY.tightened()
    assert tight.choose(audio_s, "en") == window_s
    assert tight.room_s(window_s) >= audio_s
    assert tight.choose(audio_s, "de") == max(15.0, window_s)


@given(audio_s=st.floats(0.0, FULL_WINDOW_S))
def test_full_always_shows_everything_and_doubts_nothing(audio_s: float):
    assert FULL.ladder(audio_s) == FULL.tightened().ladder(audio_s) == (FULL_WINDOW_S,)
    assert not FULL.verified
