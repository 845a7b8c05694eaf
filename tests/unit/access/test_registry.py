from __future__ import annotations

import asyncio
import copy

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.access.keys import KeyRing, digest_of, new_key, settings_key
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal, Role
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.store import Changes
from typeless_grpc.errors import NotFound, SourceUnavailable
from typeless_grpc.stores.memory_access import MemoryAccessStore

NOW_S = 1_700_000_000.0
LIMIT = Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(1, 60, 1))


class CountingStore(MemoryAccessStore):
    """Counts the questions, and holds answers back while the gate is closed."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW_S)
        self.n_reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def changes(self, since: int) -> Changes:
        self.n_reads += 1
        await self.gate.wait()
        return await super().changes(since)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


def server(store: MemoryAccessStore, refresh_s: float = 1.0) -> Registry:
    options = RegistryOptions(max_keys=10, refresh_s=refresh_s)
    return Registry(store, KeyRing({digest_of("setting"): Role.ADMIN}), Quotas([]), options, lambda: NOW_S)


async def test_a_key_made_on_one_server_is_known_to_the_other_at_once(store: CountingStore):
    one, other = server(store), server(store)
    key, secret = await one.create_key("n", Role.USER, None)
    assert await other.find(secret) == key
    assert store.n_reads == 1
    assert await one.find(secret) == key
    assert store.n_reads == 1


async def test_changes_of_other_servers_come_with_the_next_refresh(store: CountingStore):
    one, other = server(store), server(store)
    key, secret = await one.create_key("n", Role.USER, None)
    await other.refresh()
    ended = asyncio.Event()
    other.ring.watch(key.key_id, ended.set)
    await one.revoke_key(key.key_id)
    await one.set_limit(LIMIT)
    assert not ended.is_set()
    await other.refresh()
    assert ended.is_set()
    assert other.quotas.of(Principal("p", ""), Group.TRANSCRIBE, Unit.CALLS) == LIMIT
    found = await other.find(secret)
    assert found is not None
    assert found.is_revoked


async def test_many_lookups_of_unknown_keys_share_the_reads(store: CountingStore):
    registry = server(store)
    store.gate.clear()
    asking = [asyncio.create_task(registry.find(f"wrong {n}")) for n in range(50)]
    await until_idle()
    store.gate.set()
    assert await asyncio.gather(*asking) == [None] * 50
    assert store.n_reads == 2


async def test_a_lookup_does_not_use_a_read_that_began_before_it(store: CountingStore):
    """The key is created after the store was read, and before it answers: a later read must find it."""
    one, other = server(store), server(store)
    store.gate.clear()
    early = asyncio.create_task(other.refresh())
    await until_idle()
    _, secret = await one.create_key("n", Role.USER, None)
    late = asyncio.create_task(other.find(secret))
    await until_idle()
    store.gate.set()
    await early
    assert await late is not None


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
async def test_a_lookup_that_waits_for_a_failed_read_reads_itself(ends: str):
    store = FailingStore()
    registry = server(store)
    key, secret = new_key("n", Role.USER, NOW_S, None)
    store.gate.clear()
    early = asyncio.create_task(registry.refresh())
    await until_idle()
    first = asyncio.create_task(registry.find("made up"))
    second = asyncio.create_task(registry.find(secret))
    await until_idle()
    store.gate.set()
    store.gate.clear()  # later reads wait
    await early
    await until_idle()
    assert store.n_reads == 2
    await store.add_key(key, max_keys=10)
    if ends == "cancelled":
        first.cancel()
    else:
        store.failures = [ValueError()]
    store.gate.set()
    assert await second is not None
    with pytest.raises((asyncio.CancelledError, ValueError)):
        await first


async def test_known_keys_continue_to_work_while_the_store_is_unavailable(store: CountingStore):
    registry = server(store)
    _, secret = await registry.create_key("n", Role.USER, None)
    store.is_unavailable = True
    assert await registry.find(secret) is not None
    with pytest.raises(SourceUnavailable):
        await registry.find("unknown")
    with pytest.raises(SourceUnavailable):
        await registry.create_key("n", Role.USER, None)
    store.is_unavailable = False
    assert await registry.find("unknown") is None


async def test_following_continues_after_the_store_was_unavailable(store: CountingStore):
    registry = server(store, refresh_s=0)
    reports: list[bool] = []
    changed = asyncio.Event()

    def report(answers: bool) -> None:
        if reports[-1:] != [answers]:
            reports.append(answers)
            changed.set()

    following = asyncio.create_task(registry.follow(report))
    for is_unavailable in (False, True, False):
        store.is_unavailable = is_unavailable
        changed.clear()
        await changed.wait()
    following.cancel()
    assert reports == [True, False, True]


class FailingStore(CountingStore):
    """Raises what is next in `failures`, if there is one, in the place of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []

    async def changes(self, since: int) -> Changes:
        found = await super().changes(since)
        if self.failures:
            raise self.failures.pop(0)
        return found


async def test_following_continues_after_any_error(caplog: pytest.LogCaptureFixture):
    store = FailingStore()
    one, other = server(store), server(store, refresh_s=0)
    key, _ = await one.create_key("n", Role.USER, None)
    await other.refresh()
    await one.revoke_key(key.key_id)
    store.failures = [ValueError("'auditor' is not a valid Role")] * 3
    reports: list[bool] = []
    ended = asyncio.Event()
    other.ring.watch(key.key_id, ended.set)
    following = asyncio.create_task(other.follow(reports.append))
    await asyncio.wait_for(ended.wait(), 30)
    following.cancel()
    assert reports[:3] == [False] * 3
    assert caplog.text.count("Traceback") == 1


class RestoredStore(CountingStore):
    """A store whose content is replaced by an older copy."""

    def copy(self) -> dict[str, object]:
        return copy.deepcopy({name: vars(self)[name] for name in ("_revision", "_keys", "_limits")})

    def restore(self, older: dict[str, object]) -> None:
        vars(self).update(copy.deepcopy(older))


@pytest.mark.parametrize("is_noticed", ["by its number", "by an outage"])
async def test_a_store_that_was_restored_from_an_older_copy_is_read_again(is_noticed: str):
    store = RestoredStore()
    one, other = server(store), server(store)
    mine = settings_key("setting", Role.ADMIN, NOW_S)
    kept, kept_secret = await one.create_key("kept", Role.USER, None)
    revoked, revoked_secret = await one.create_key("revoked", Role.USER, None)
    later, later_secret = await one.create_key("revoked after the restore", Role.USER, None)
    yesterday = store.copy()
    await one.load([mine])
    await one.revoke_key(revoked.key_id)
    _, new_secret = await one.create_key("made today", Role.USER, None)
    await one.set_limit(LIMIT)
    await other.refresh()
    ended = asyncio.Event()
    new = other.ring.find(new_secret)
    assert new is not None
    other.ring.watch(new.key_id, ended.set)

    store.restore(yesterday)
    if is_noticed == "by an outage":  # and others have made more changes meanwhile
        store.is_unavailable = True
        with pytest.raises(SourceUnavailable):
            await other.refresh()
        store.is_unavailable = False
        for n in range(9):
            await store.revoke_key((await store.add_key(new_key(str(n), Role.USER, NOW_S, None)[0], max_keys=9)).key_id)
    await store.revoke_key(later.key_id)
    for registry in (other, server(store)):
        await registry.refresh()
        for key, secret in ((revoked, revoked_secret), (later, later_secret)):
            found = await registry.find(secret)
            assert found is not None
            assert found.is_revoked, key.display_name
        assert await registry.find(kept_secret) == kept
        assert await registry.find(new_secret) is None
        assert await registry.find("setting") is not None
        assert registry.quotas.of(Principal("p", ""), Group.TRANSCRIBE, Unit.CALLS) is None
    assert ended.is_set()


async def test_keys_that_a_restore_writes_late_are_found():
    store = RestoredStore()
    registry = server(store)
    _, secret = await registry.create_key("n", Role.USER, None)
    await registry.refresh()
    whole = store.copy()
    store.restore(whole | {"_keys": {}})
    store.is_unavailable = True
    with pytest.raises(SourceUnavailable):
        await registry.refresh()
    store.is_unavailable = False
    assert await registry.find("another") is None
    store.restore(whole)
    assert await registry.find(secret) is not None


class LateStore(CountingStore):
    """Holds its answers back once it has them."""

    async def changes(self, since: int) -> Changes:
        found = await MemoryAccessStore.changes(self, since)
        await self.gate.wait()
        return found


async def test_a_key_that_is_made_while_everything_is_read_is_kept():
    store = LateStore()
    registry = server(store)
    store.is_unavailable = True
    with pytest.raises(SourceUnavailable):
        await registry.refresh()
    store.is_unavailable = False
    store.gate.clear()
    reading = asyncio.create_task(registry.refresh())
    await until_idle()
    key, secret = await registry.create_key("n", Role.USER, None)
    await registry.set_limit(LIMIT)
    store.gate.set()
    await reading
    assert registry.ring.find(secret) == key
    assert registry.quotas.of(Principal("p", ""), Group.TRANSCRIBE, Unit.CALLS) == LIMIT


async def test_uses_reach_the_store_when_keys_are_listed(store: CountingStore):
    registry = server(store)
    key, _ = await registry.create_key("n", Role.USER, None)
    registry.ring.used(key.key_id, NOW_S + 7)
    assert [k.last_use_s for k in await registry.keys_after(0, 10)] == [NOW_S + 7]


async def test_settings_keys_are_listed_and_stay_revoked_over_a_restart(store: CountingStore):
    mine = settings_key("setting", Role.ADMIN, NOW_S)
    registry = server(store)
    await registry.load([mine])
    assert [k.key_id for k in await registry.keys_after(0, 10)] == [mine.key_id]
    await registry.revoke_key(mine.key_id)
    again = server(store)
    await again.load([mine])
    found = await again.find("setting")
    assert found is not None
    assert found.is_revoked


async def test_changes_of_an_unknown_key_are_not_found(store: CountingStore):
    registry = server(store)
    with pytest.raises(NotFound):
        await registry.revoke_key("k0")
    with pytest.raises(NotFound):
        await registry.set_limit(Limit(Group.JOBS, Unit.CALLS, Quota(1, 1, 1), "k0"))


async def test_a_limit_for_a_key_of_another_server_is_set(store: CountingStore):
    one, other = server(store), server(store)
    key, _ = await one.create_key("n", Role.USER, None)
    await other.set_limit(Limit(Group.JOBS, Unit.CALLS, Quota(1, 1, 1), key.key_id))
    assert other.quotas.of(key.principal, Group.JOBS, Unit.CALLS) is not None
