from __future__ import annotations

import pytest
from pydantic import SecretStr

from typeless_grpc.config import Settings, change, described, is_reloadable


def test_a_setting_that_cannot_be_reloaded_keeps_its_value_and_is_named():
    changes = change(Settings(), Settings(port=1, max_audio_s=5.0, model="small"))
    assert changes.settings == Settings(max_audio_s=5.0)
    assert (changes.applied, sorted(changes.waiting)) == (["max_audio_s"], ["model", "port"])


def test_the_same_settings_change_nothing():
    changes = change(Settings(port=1), Settings(port=1))
    assert (changes.settings, changes.applied, changes.waiting) == (Settings(port=1), [], [])


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_applied_or_named(name: str):
    current, other = Settings(), Settings().model_copy(update={name: object()})
    changes = change(current, other)
    assert (name in changes.applied, name in changes.waiting) == (is_reloadable(name), not is_reloadable(name))


def test_keys_wait_with_the_switch_that_turns_them_off_or_on():
    with_keys = Settings(auth_enabled=True, api_keys=("one",), max_audio_s=5.0)
    off = change(with_keys, Settings())
    assert off.settings == Settings(auth_enabled=True, api_keys=("one",))
    assert (off.applied, sorted(off.waiting)) == (["max_audio_s"], ["api_keys", "auth_enabled"])
    assert change(Settings(), with_keys).settings == Settings(max_audio_s=5.0)


def test_a_change_is_shown_without_secrets():
    before = Settings(
        auth_enabled=True, api_keys=(SecretStr("old-secret"),), audio_uri_prefixes=["s3://user:word@host/"]
    )
    after = Settings(auth_enabled=True, max_audio_s=5.0, user_models=("a", "b"))
    texts = {
        name: described(name, before, after)
        for name in ("api_keys", "audio_uri_prefixes", "max_audio_s", "user_models")
    }
    assert texts == {
        "api_keys": "changed",
        "audio_uri_prefixes": "changed",
        "max_audio_s": "3600.0 -> 5.0",
        "user_models": " -> a,b",
    }
