"""Keys and limits on three servers that share a store, beside one list: made, revoked, expired, rotated, limited."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.states.machines import CountedMachine, check, finds
from typeless_grpc.access.gate import Credentials, Failures, Gate
from typeless_grpc.access.keys import ApiKey, KeyRing
from typeless_grpc.access.methods import Access, Group, Rule
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.store import Changes
from typeless_grpc.clock import FakeClock
from typeless_grpc.errors import NotFound, SourceUnavailable, TooLarge, TypelessError
from typeless_grpc.stores.buckets import MemoryBuckets
from typeless_grpc.stores.memory_access import MemoryAccessStore

N_EXAMPLES = 60
MAX_KEYS, TTL_S, N_SERVERS = 3, 100.0, 3
NUMBERS, SERVERS = st.integers(0, 5), st.integers(0, N_SERVERS - 1)
RULES = {access: Rule(access, Group.TRANSCRIBE) for access in (Access.USER, Access.ADMIN)}
EVERYONE = Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(10, 60, 10))


@dataclass
class KnownKey:
    """The reference. revoked_on: the servers that know it. calls: that run with it, by server, and why they ended."""

    key: ApiKey
    secret: str
    role: Role
    expires_s: float | None
    is_revoked: bool = False
    revoked_on: set[int] = field(default_factory=set)
    quota: Quota = EVERYONE.quota
    calls: list[tuple[int, list[str]]] = field(default_factory=list)


class KeyServer:
    def __init__(self, keys: Keys) -> None:
        clock = keys.clock
        self.ring, self.quotas = keys.ring(), Quotas([EVERYONE])
        options = RegistryOptions(max_keys=MAX_KEYS)
        self.registry = keys.registry(keys.store, self.ring, self.quotas, options, clock.now_s)
        failures = Failures(MemoryBuckets(100), None, clock)
        self.gate = Gate(self.registry, None, failures, is_required=True, wall_s=clock.now_s)


class Keys(CountedMachine):
    """Three servers; what each has read may be old."""

    ring: type[KeyRing] = KeyRing
    registry: type[Registry] = Registry
    store_class: type[MemoryAccessStore] = MemoryAccessStore

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.store = self.store_class(self.clock.now_s)
        self.servers = [KeyServer(self) for _ in range(N_SERVERS)]
        self.known: list[KnownKey] = []

    @initialize()
    def begin(self) -> None:
        self.create(0, Role.ADMIN, None)
        self.create(1, Role.USER, TTL_S)
        self.call(0, 0, Access.ADMIN)
        self.call(1, 1, Access.USER)

    @rule(server=SERVERS, role=st.sampled_from(Role), ttl_s=st.sampled_from([None, TTL_S, TTL_S]))
    def create(self, server: int, role: Role, ttl_s: float | None) -> None:
        now_s = self.clock.now_s()
        n_usable = sum(not one.is_revoked and not self.is_expired(one) for one in self.known)
        expires_s = now_s + ttl_s if ttl_s is not None else None
        try:
            key, secret = self.run(self.servers[server].registry.create_key("a key", role, expires_s))
        except TooLarge:
            assert n_usable >= MAX_KEYS
        except SourceUnavailable:
            assert self.store.is_unavailable
        else:
            assert n_usable < MAX_KEYS
            assert secret not in {one.secret for one in self.known}
            self.known.append(KnownKey(key, secret, role, expires_s))

    @rule(server=SERVERS, n=NUMBERS)
    def revoke(self, server: int, n: int) -> None:
        known = self.known[n % len(self.known)]
        try:
            self.run(self.servers[server].registry.revoke_key(known.key.key_id))
        except SourceUnavailable:
            assert self.store.is_unavailable
            return
        known.is_revoked = True
        self.calls_end_on(server, known)

    @rule(server=SERVERS, n=NUMBERS, role=st.sampled_from(Role))
    def rotate(self, server: int, n: int, role: Role) -> None:
        """A new key in the place of an old one, made and revoked on different servers."""
        self.create(server, role, None)
        self.revoke((server + 1) % N_SERVERS, n)

    @rule(server=SERVERS, n=NUMBERS, access=st.sampled_from(list(RULES)))
    def call(self, server: int, n: int, access: Access) -> None:
        known, on = self.known[n % len(self.known)], self.servers[server]
        is_new_here = known.key.key_id not in on.ring
        try:
            caller = self.run(on.gate.admit(Credentials(key=known.secret), "192.0.2.1", RULES[access]))
            reason = ""
        except TypelessError as error:
            caller, reason = None, error.reason
        if is_new_here and not self.store.is_unavailable:
            self.has_read(server)
        assert reason == self.expected(server, known, access, is_new_here=is_new_here)
        if caller is not None:
            assert (caller.key_id, caller.is_admin) == (known.key.key_id, known.role is Role.ADMIN)
            ended: list[str] = []
            on.ring.watch(known.key.key_id, lambda: ended.append("revoked"))
            known.calls.append((server, ended))

    def expected(self, server: int, known: KnownKey, access: Access, *, is_new_here: bool) -> str:
        """The reason why a call is refused; "" if it is not."""
        if is_new_here and self.store.is_unavailable:
            return "KEY_STORE_UNAVAILABLE"
        if server in known.revoked_on:
            return "KEY_REVOKED"
        if self.is_expired(known):
            return "KEY_EXPIRED"
        return "ADMIN_KEY_REQUIRED" if access is Access.ADMIN and known.role is not Role.ADMIN else ""

    @rule(server=SERVERS)
    def call_with_a_wrong_key(self, server: int) -> None:
        with pytest.raises(TypelessError) as caught:
            self.run(self.servers[server].gate.admit(Credentials(key="tl_wrong"), "192.0.2.2", RULES[Access.USER]))
        assert caught.value.reason == ("KEY_STORE_UNAVAILABLE" if self.store.is_unavailable else "KEY_INVALID")
        if not self.store.is_unavailable:
            self.has_read(server)

    @rule(server=SERVERS)
    def refresh(self, server: int) -> None:
        """As each server does every second."""
        try:
            self.run(self.servers[server].registry.refresh())
        except SourceUnavailable:
            assert self.store.is_unavailable
        else:
            assert not self.store.is_unavailable
            self.has_read(server)
            on = self.servers[server]
            for one in self.known:
                assert one.key.key_id in on.ring
                assert self.quota_on(server, one) == one.quota

    @rule(server=SERVERS, n=NUMBERS, amount=st.integers(1, 99))
    def set_limit(self, server: int, n: int, amount: int) -> None:
        known, quota = self.known[n % len(self.known)], Quota(amount, 60, amount)
        is_new_here = known.key.key_id not in self.servers[server].ring
        try:
            limit = Limit(Group.TRANSCRIBE, Unit.CALLS, quota, known.key.key_id)
            self.run(self.servers[server].registry.set_limit(limit))
        except SourceUnavailable:
            assert self.store.is_unavailable
            return
        if is_new_here:
            self.has_read(server)
        known.quota = quota
        assert self.quota_on(server, known) == quota

    @rule(server=SERVERS)
    def an_unknown_key_has_no_limit(self, server: int) -> None:
        with pytest.raises((NotFound, SourceUnavailable)):
            self.run(self.servers[server].registry.set_limit(Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(1, 1, 1), "kx")))
        if not self.store.is_unavailable:
            self.has_read(server)

    @rule(seconds=st.sampled_from([1.0, TTL_S / 2, TTL_S, TTL_S]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(is_unavailable=st.booleans())
    def store_comes_or_goes(self, is_unavailable: bool) -> None:
        self.store.is_unavailable = is_unavailable

    def has_read(self, server: int) -> None:
        for known in self.known:
            if known.is_revoked:
                self.calls_end_on(server, known)

    def calls_end_on(self, server: int, known: KnownKey) -> None:
        """The calls of a revoked key end as soon as their server knows."""
        assert all(ended for where, ended in known.calls if where == server)
        known.revoked_on.add(server)

    def is_expired(self, known: KnownKey) -> bool:
        return known.expires_s is not None and known.expires_s <= self.clock.now_s()

    def quota_on(self, server: int, known: KnownKey) -> Quota | None:
        limit = self.servers[server].quotas.of(known.key.principal, Group.TRANSCRIBE, Unit.CALLS)
        return limit.quota if limit is not None else None


class SkipsAChange(MemoryAccessStore):
    async def changes(self, since: int) -> Changes:
        return await super().changes(since + 1 if since else 0)


class LetsCallsGoOn(KeyRing):
    def watch(self, key_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class ForgetsExpiry(KeyRing):
    def apply(self, keys: Iterable[ApiKey]) -> None:
        super().apply([replace(key, expires_s=None) for key in keys])


class MakesAdmins(KeyRing):
    def apply(self, keys: Iterable[ApiKey]) -> None:
        super().apply([replace(key, role=Role.ADMIN) for key in keys])


class NeverReadsAgain(Registry):
    """An unknown key is not looked for in the store."""

    async def find(self, secret: str) -> ApiKey | None:
        return self.ring.find(secret)


def planted(**parts: type) -> type[Keys]:
    return type("Planted", (Keys,), parts)


def test_keys_are_the_same_on_every_server():
    check(Keys, N_EXAMPLES)


@pytest.mark.parametrize(
    "parts",
    [
        {"store_class": SkipsAChange},
        {"ring": LetsCallsGoOn},
        {"ring": ForgetsExpiry},
        {"ring": MakesAdmins},
        {"registry": NeverReadsAgain},
    ],
    ids=["a change is skipped", "calls go on", "no expiry", "all are admins", "unknown keys are not looked for"],
)
def test_a_planted_fault_of_keys_is_found(parts):
    finds(planted(**parts), N_EXAMPLES)
