from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.access.test_tokens import EC, OPTIONS, Issuer, token
from typeless_grpc.access.gate import Credentials, Failures, Gate
from typeless_grpc.access.keys import KeyRing
from typeless_grpc.access.methods import OPEN_SERVICES, RULES, Access, Group, Rule, rules
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Quota, Quotas
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.tokens import SigningKeys, TokenVerifier
from typeless_grpc.clock import FakeClock
from typeless_grpc.errors import PermissionDenied, RateLimited, SourceUnavailable, Unauthenticated
from typeless_grpc.stores.buckets import MemoryBuckets
from typeless_grpc.stores.memory_access import MemoryAccessStore

NOW_S = 1_700_000_000.0
USER = Rule(Access.USER, Group.TRANSCRIBE)
HERE, THERE = "192.0.2.1", "192.0.2.2"
WRONG = Credentials(key="wrong")


class Setting:
    """A gate with a store behind it, and a clock that moves on demand."""

    def __init__(self, *, is_required: bool = True, most_wrong: int = 3) -> None:
        self.clock = FakeClock()
        self.now_s = NOW_S
        self.store = MemoryAccessStore(lambda: self.now_s)
        self.registry = Registry(self.store, KeyRing(), Quotas([]), RegistryOptions(), lambda: self.now_s)
        self.failures = Failures(MemoryBuckets(100), Quota(1, 60, most_wrong), self.clock, max_entries=2)
        self.gate = Gate(self.registry, None, self.failures, is_required=is_required, wall_s=lambda: self.now_s)

    async def key(self, role: Role = Role.USER, expires_s: float | None = None) -> Credentials:
        _, secret = await self.registry.create_key("n", role, expires_s)
        return Credentials(key=secret)


async def test_a_key_is_good_until_the_moment_it_expires():
    setting = Setting()
    key = await setting.key(expires_s=NOW_S + 10)
    setting.now_s = NOW_S + 9.999
    assert (await setting.gate.admit(key, HERE, USER)).id.startswith("key:")
    setting.now_s = NOW_S + 10
    with pytest.raises(Unauthenticated) as caught:
        await setting.gate.admit(key, HERE, USER)
    assert caught.value.reason == "KEY_EXPIRED"


async def test_anonymous_callers_own_the_jobs_of_their_address():
    anonymous = await Setting(is_required=False).gate.admit(Credentials(), HERE, USER)
    assert (anonymous.id, anonymous.owner, anonymous.is_admin) == (f"address:{HERE}", f"address:{HERE}", False)


async def test_all_callers_own_everything_if_keys_are_off():
    failures = Setting().failures
    gate = Gate(None, None, failures, is_required=False)
    for address in (HERE, THERE):
        principal = await gate.admit(WRONG, address, Rule(Access.ADMIN, Group.CONFIG))
        assert (principal.id, principal.owner) == (f"address:{address}", "")
    with pytest.raises(Unauthenticated, match="TYPELESS_AUTH_ENABLED"):
        await gate.admit(WRONG, HERE, Rule(Access.ADMIN_KEY, Group.CONFIG))


@pytest.mark.parametrize("access", [Access.ADMIN, Access.ADMIN_KEY])
async def test_an_admins_call_needs_an_admin(access: Access):
    setting = Setting()
    rule = Rule(access, Group.CONFIG)
    assert (await setting.gate.admit(await setting.key(Role.ADMIN), HERE, rule)).is_admin
    with pytest.raises(PermissionDenied):
        await setting.gate.admit(await setting.key(), HERE, rule)


async def wrong(setting: Setting, address: str) -> str:
    """The class of what a wrong key is refused with."""
    with pytest.raises((Unauthenticated, RateLimited)) as caught:
        await setting.gate.admit(WRONG, address, USER)
    return type(caught.value).__name__


async def test_too_many_wrong_keys_block_their_address_and_no_other():
    setting = Setting(most_wrong=2)
    known, new = await setting.key(), await setting.key()
    await setting.gate.admit(known, HERE, USER)
    assert [await wrong(setting, HERE) for _ in range(4)] == ["Unauthenticated"] * 2 + ["RateLimited"] * 2
    assert await wrong(setting, THERE) == "Unauthenticated"
    await setting.gate.admit(known, HERE, USER)
    with pytest.raises(RateLimited):
        await setting.gate.admit(new, HERE, USER)
    setting.clock.advance(61)
    await setting.gate.admit(new, HERE, USER)


async def test_a_blocked_address_causes_no_reads_of_the_store():
    setting = Setting(most_wrong=1)
    assert [await wrong(setting, HERE) for _ in range(2)] == ["Unauthenticated", "RateLimited"]
    setting.store.is_unavailable = True
    assert await wrong(setting, HERE) == "RateLimited"
    with pytest.raises(SourceUnavailable):
        await setting.gate.admit(WRONG, THERE, USER)


async def test_a_token_good_from_a_blocked_address_before_is_good_there_still():
    setting, issuer = Setting(most_wrong=1), Issuer()
    with ThreadPoolExecutor(1) as threads:
        signing_keys = SigningKeys(issuer.fetch, threads, setting.clock, OPTIONS)
        gate = Gate(setting.registry, TokenVerifier(signing_keys, OPTIONS), setting.failures, is_required=True)
        await gate.admit(Credentials(bearer=token(sub="ada")), HERE, USER)
        assert [await wrong(setting, HERE) for _ in range(2)] == ["Unauthenticated", "RateLimited"]
        assert (await gate.admit(Credentials(bearer=token(sub="ada", iat=1)), HERE, USER)).id == "token:ada"
        strangers = [token(sub="eve"), token(private=EC, algorithm="ES256"), token(kid="other"), "a.b.c"]
        for stranger in strangers:
            with pytest.raises(RateLimited):
                await gate.admit(Credentials(bearer=stranger), HERE, USER)
        assert issuer.n_fetches == 1


async def test_an_expired_or_revoked_key_is_no_wrong_key():
    setting = Setting(most_wrong=1)
    key = await setting.key(expires_s=NOW_S + 1)
    setting.now_s = NOW_S + 2
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await setting.gate.admit(key, HERE, USER)
    assert await wrong(setting, HERE) == "Unauthenticated"


async def test_the_memory_of_addresses_is_bounded():
    setting = Setting(most_wrong=1)
    for n in range(5):
        assert [await wrong(setting, f"192.0.2.{n}") for _ in range(2)] == ["Unauthenticated", "RateLimited"]
        await setting.gate.admit(await setting.key(), f"198.51.100.{n}", USER)
    assert setting.failures.n_remembered == (2, 2)


def test_services_are_closed_by_name():
    closed = rules(["health"])
    open_now = {method for method, rule in closed.items() if rule.access is Access.OPEN}
    assert open_now == {method for method in RULES if "Health" in method}
    assert closed["/typeless.v1.ServerService/GetServerInfo"].access is Access.USER
    assert rules(OPEN_SERVICES) == RULES
    assert rules()["/typeless.v1.Unheard/Of"].access is Access.ADMIN_KEY
