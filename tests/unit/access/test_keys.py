from __future__ import annotations

from dataclasses import replace

import pytest

from typeless_grpc.access.keys import KeyRing, digest_of, new_key, settings_key
from typeless_grpc.access.principal import Role

NOW_S = 1_700_000_000.0


def test_a_new_key_has_256_random_bits_and_shows_only_its_beginning():
    made = [new_key("n", Role.USER, NOW_S, None) for _ in range(100)]
    assert len({secret for _, secret in made}) == len({key.key_id for key, _ in made}) == 100
    for key, secret in made:
        assert len(secret) == 3 + 43
        assert secret.startswith(key.prefix)
        assert len(key.prefix) == 9
        assert key.digest == digest_of(secret)
        assert secret not in repr(key)


def test_a_key_is_found_by_its_secret_alone():
    ring = KeyRing()
    (a, secret), (b, _) = (new_key(name, Role.USER, NOW_S, None) for name in "ab")
    ring.apply([a, b])
    assert ring.find(secret) == a
    for wrong in ("", secret[:-1], f"{secret}x", secret.swapcase(), a.key_id, a.prefix, "\ud800"):
        assert ring.find(wrong) is None


def test_an_ended_key_is_still_found_so_that_its_caller_gets_the_reason():
    ring = KeyRing()
    key, secret = new_key("n", Role.USER, NOW_S, None)
    ring.apply([key])
    ring.apply([replace(key, is_revoked=True)])
    found = ring.find(secret)
    assert found is not None
    assert found.is_revoked


def test_a_settings_key_is_the_same_on_every_server_and_has_the_role_it_has_there():
    one, again = (settings_key("a secret of some length", Role.USER, NOW_S + n) for n in range(2))
    assert one.key_id == again.key_id
    ring = KeyRing({one.digest: Role.ADMIN})
    ring.apply([one])
    found = ring.find("a secret of some length")
    assert found is not None
    assert found.role is Role.ADMIN


def test_a_settings_key_of_another_server_means_nothing_here():
    ring = KeyRing()
    ring.apply([settings_key("secret", Role.ADMIN, NOW_S)])
    assert ring.find("secret") is None


@pytest.mark.parametrize(("secret", "shown"), [("short", ""), ("x" * 35, ""), ("x" * 36, "x" * 9)])
def test_no_part_of_a_short_settings_key_is_shown(secret: str, shown: str):
    assert settings_key(secret, Role.USER, NOW_S).prefix == shown


def test_watchers_of_a_key_are_notified_of_its_end_until_they_stop():
    ring = KeyRing()
    key, _ = new_key("n", Role.USER, NOW_S, None)
    ring.apply([key])
    ended: list[str] = []
    ring.watch(key.key_id, lambda: ended.append("a"))
    stop = ring.watch(key.key_id, lambda: ended.append("b"))
    ring.watch("another", lambda: ended.append("c"))
    stop()
    ring.apply([key])
    assert ended == []
    ring.apply([replace(key, is_revoked=True)])
    assert ended == ["a"]


def test_uses_are_handed_over_once():
    ring = KeyRing()
    ring.used("k1", NOW_S)
    ring.used("k1", NOW_S + 1)
    assert ring.take_uses() == {"k1": NOW_S + 1}
    assert ring.take_uses() == {}
