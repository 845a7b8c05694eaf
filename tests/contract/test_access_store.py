"""What every store of keys, limits and usage does."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from typeless_grpc.access.keys import ApiKey, new_key
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quota, Unit
from typeless_grpc.access.store import AccessStore
from typeless_grpc.access.usage import DailyUsage, Usage, UsageBatch, UsageQuery
from typeless_grpc.errors import SourceUnavailable, TooLarge
from typeless_grpc.stores.memory_access import MemoryAccessStore
from typeless_grpc.stores.sql_access import SqlAccessStore, sqlite_url

NOW_S = 1_700_000_000.0
MANY = 1000


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Connect = Callable[[], Awaitable[AccessStore]]


@pytest.fixture
async def connect(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Opens the store, each time as another server would; the one in memory has only the one."""
    if kind == "memory":
        only = MemoryAccessStore(lambda: NOW_S)

        async def same() -> AccessStore:
            return only

        yield same
        return
    url = sqlite_url(tmp_path / "access.sqlite3")
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").empty_database()
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        name = f"access_{time.monotonic_ns()}"
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        url = f"{url.rpartition('/')[0]}/{name}"
    async with AsyncExitStack() as stack:

        async def another() -> AccessStore:
            store = SqlAccessStore(url, lambda: NOW_S)
            stack.push_async_callback(store.close)
            await store.open()
            return store

        yield another


@pytest.fixture
async def store(connect: Connect) -> AccessStore:
    return await connect()


def key(name: str = "n", *, expires_s: float | None = None, role: Role = Role.USER) -> ApiKey:
    return new_key(name, role, NOW_S, expires_s)[0]


LIMIT = Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(10, 60, 20))


async def test_a_key_comes_back_as_it_went_in(store: AccessStore):
    made = key("Über-Schlüssel", expires_s=NOW_S + 0.5, role=Role.ADMIN)
    kept = await store.add_key(made, max_keys=MANY)
    assert vars(kept) | {"position": 0} == vars(made)
    assert kept.position > 0
    assert await store.keys_after(0, 10) == [kept]


async def test_pages_follow_the_order_of_creation(store: AccessStore):
    made = [await store.add_key(key(str(n)), max_keys=MANY) for n in range(5)]
    await store.revoke_key(made[0].key_id)
    first = await store.keys_after(0, 2)
    second = await store.keys_after(first[-1].position, 10)
    assert [k.display_name for k in (*first, *second)] == ["0", "1", "2", "3", "4"]


async def test_an_existing_key_stays_as_it_is(store: AccessStore):
    made = key("first")
    await store.add_key(made, max_keys=1)
    await store.revoke_key(made.key_id)
    again = await store.add_key(made, max_keys=1)
    assert again.is_revoked
    assert len(await store.keys_after(0, 10)) == 1


async def test_only_valid_keys_count_towards_the_maximum(store: AccessStore):
    revoked = await store.add_key(key("revoked"), max_keys=1)
    await store.revoke_key(revoked.key_id)
    await store.add_key(key("expired", expires_s=NOW_S - 1), max_keys=1)
    await store.add_key(key("live"), max_keys=1)
    with pytest.raises(TooLarge) as caught:
        await store.add_key(key("one too many"), max_keys=1)
    assert caught.value.reason == "TOO_MANY_KEYS"


async def test_a_key_that_is_revoked_again_is_the_same_key(store: AccessStore):
    made = await store.add_key(key(), max_keys=MANY)
    assert await store.revoke_key(made.key_id) == await store.revoke_key(made.key_id)


async def test_revoking_an_unknown_key_changes_nothing(store: AccessStore):
    assert await store.revoke_key("k0") is None


async def test_changes_are_those_since_a_revision(store: AccessStore):
    nothing = await store.changes(0)
    assert (nothing.keys, nothing.limits) == ([], [])
    a, b = [await store.add_key(key(name), max_keys=MANY) for name in "ab"]
    await store.set_limit(LIMIT)
    seen = await store.changes(0)
    assert ([k.key_id for k in seen.keys], seen.limits) == ([a.key_id, b.key_id], [LIMIT])
    await store.revoke_key(a.key_id)
    later = await store.changes(seen.revision)
    assert [(k.key_id, k.is_revoked) for k in later.keys] == [(a.key_id, True)]
    assert later.limits == []
    assert (await store.changes(later.revision)).keys == []


async def test_a_limit_takes_the_place_of_the_one_before(store: AccessStore):
    await store.set_limit(LIMIT)
    await store.set_limit(Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(1, 1, 1)))
    of_a_key = Limit(Group.TRANSCRIBE, Unit.CONCURRENT_CALLS, Quota.at_once(2), "k1")
    await store.set_limit(of_a_key)
    limits = (await store.changes(0)).limits
    assert sorted(limits, key=str) == sorted([of_a_key, Limit(Group.TRANSCRIBE, Unit.CALLS, Quota(1, 1, 1))], key=str)


async def test_the_last_use_only_moves_on_and_is_no_change(store: AccessStore):
    made = await store.add_key(key(), max_keys=MANY)
    revision = (await store.changes(0)).revision
    await store.record_uses({made.key_id: NOW_S + 5, "nobody": NOW_S})
    await store.record_uses({made.key_id: NOW_S + 1})
    await store.record_uses({})
    assert [k.last_use_s for k in await store.keys_after(0, 10)] == [NOW_S + 5]
    assert (await store.changes(0)).revision == revision


async def test_many_writers_miss_nothing_of_each_other(connect: Connect):
    stores = [await connect() for _ in range(3)]
    seen: set[str] = set()

    async def follow(store: AccessStore, until: int) -> None:
        revision = 0
        while len(seen) < until:
            changes = await store.changes(revision)
            assert changes.revision >= revision
            revision = changes.revision
            seen.update(k.display_name for k in changes.keys)
            await asyncio.sleep(0.001)  # the store in memory never waits

    names = [f"{n}" for n in range(30)]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(follow(stores[0], len(names)))
        for n, name in enumerate(names):
            group.create_task(stores[n % 3].add_key(key(name), max_keys=MANY))
    assert seen == set(names)


async def test_the_maximum_holds_for_servers_that_add_keys_at_once(connect: Connect):
    stores = [await connect() for _ in range(3)]
    adding = [stores[n % 3].add_key(key(str(n)), max_keys=5) for n in range(12)]
    done = await asyncio.gather(*adding, return_exceptions=True)
    assert sum(isinstance(one, ApiKey) for one in done) == 5
    assert len(await stores[0].keys_after(0, 100)) == 5


async def test_servers_that_start_at_once_all_find_their_tables(connect: Connect):
    stores = await asyncio.gather(*(connect() for _ in range(6)))
    made = await stores[0].add_key(key(), max_keys=MANY)
    for store in stores:
        assert [k.key_id for k in await store.keys_after(0, 10)] == [made.key_id]


async def test_a_store_that_cannot_be_reached_fails_and_may_be_retried(tmp_path: Path):
    store = SqlAccessStore(f"postgresql://nobody@127.0.0.1:1/nothing?user={tmp_path.name[:8]}", lambda: NOW_S)
    with pytest.raises(SourceUnavailable) as caught:
        await store.open()
    assert (caught.value.reason, caught.value.retryable) == ("KEY_STORE_UNAVAILABLE", True)
    await store.close()


async def test_keys_in_a_sqlite_store_survive_the_process(tmp_path: Path):
    url = sqlite_url(tmp_path / "access.sqlite3")
    first = SqlAccessStore(url, lambda: NOW_S)
    await first.open()
    made = await first.add_key(key(), max_keys=MANY)
    await first.close()
    second = SqlAccessStore(url, lambda: NOW_S)
    await second.open()
    assert await second.keys_after(0, 10) == [made]
    await second.close()


async def sqlite(file: Path) -> SqlAccessStore:
    store = SqlAccessStore(sqlite_url(file), lambda: NOW_S)
    await store.open()
    return store


def change(file: Path, *statements: str) -> None:
    """Write to the database past the store."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


async def test_the_store_is_unavailable_while_its_database_is_restored(tmp_path: Path):
    store = await sqlite(tmp_path / "access.sqlite3")
    change(tmp_path / "access.sqlite3", "DELETE FROM access_revision")
    with pytest.raises(SourceUnavailable):
        await store.changes(0)
    with pytest.raises(SourceUnavailable):
        await store.add_key(key(), max_keys=MANY)
    change(tmp_path / "access.sqlite3", "INSERT INTO access_revision VALUES (1, 7)")
    assert (await store.changes(0)).revision == 7
    await store.close()


async def test_rows_of_a_newer_version_do_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = await sqlite(tmp_path / "access.sqlite3")
    foreign, mine = [await store.add_key(key(), max_keys=MANY) for _ in range(2)]
    await store.set_limit(LIMIT)
    change(
        tmp_path / "access.sqlite3",
        f"UPDATE access_keys SET role = 'auditor' WHERE key_id = '{foreign.key_id}'",
        "INSERT INTO access_limits SELECT key_id, 'dreams', unit, 1, 60, 1, revision FROM access_limits",
        "INSERT INTO access_limits SELECT key_id, \"group\", 'tokens', 1, 60, 1, revision FROM access_limits",
    )
    for _ in range(2):
        changes = await store.changes(0)
        assert (changes.keys, changes.limits) == ([mine], [LIMIT])
    assert await store.keys_after(0, 1) == [mine]
    assert caplog.text.count("newer version") == 1
    await store.close()


def test_another_database_is_refused():
    with pytest.raises(ValueError, match="postgresql"):
        SqlAccessStore("mysql://host/db", lambda: NOW_S)


DAY = date(2025, 1, 31)


def row(caller: str, day: date = DAY, **sums: int) -> DailyUsage:
    return DailyUsage(day, caller, Usage(**sums))


async def all_usage(store: AccessStore, **query: Any) -> Sequence[DailyUsage]:
    return await store.usage(UsageQuery(n_most=MANY, **query))


async def test_usage_of_several_servers_adds_up(connect: Connect):
    a, b = await connect(), await connect()
    await a.add_usage(UsageBatch("a", 1, [row("key:k1", calls=2, failed_calls=1, audio_us=1_500_000), row("")]))
    await b.add_usage(UsageBatch("b", 1, [row("key:k1", calls=3, audio_us=2**40, jobs=4)]))
    await a.add_usage(UsageBatch("a", 2, [row("key:k1", calls=1)]))
    added = row("key:k1", calls=6, failed_calls=1, audio_us=1_500_000 + 2**40, jobs=4)
    for store in (a, b):
        assert await all_usage(store) == [row(""), added]


async def test_a_batch_that_is_sent_again_is_added_once(connect: Connect):
    a, b = await connect(), await connect()
    first = UsageBatch("a", 1, [row("key:k1", calls=2)])
    second = UsageBatch("a", 2, [row("key:k1", calls=5)])
    for store in (a, a, b):
        await store.add_usage(first)
    for store in (b, a):
        await store.add_usage(second)
    await a.add_usage(first)
    assert await all_usage(a) == [row("key:k1", calls=7)]


async def test_servers_that_write_usage_at_once_lose_none_of_it(connect: Connect):
    stores = [await connect() for _ in range(3)]
    callers = [f"key:k{n}" for n in range(40)]
    # Each in another order: writers must not wait for each other in a circle.
    orders = [callers, callers[::-1], callers[20:] + callers[:20]]

    async def write(n: int) -> None:
        for sequence in range(1, 6):
            rows = [row(caller, calls=1) for caller in orders[n]]
            await stores[n].add_usage(UsageBatch(f"w{n}", sequence, rows))

    await asyncio.gather(*map(write, range(3)))
    assert {one.usage.calls for one in await all_usage(stores[0])} == {15}


async def test_pages_of_usage_are_in_the_order_of_day_and_caller(store: AccessStore):
    days = [DAY + timedelta(days=n) for n in range(3)]
    # In the order of Python and of bytes: capitals first, and beyond ASCII last.
    callers = ["", "key:K", "key:a", "key:ä", "token:Z", "token:z"]
    rows = [row(caller, day, calls=1) for day in days for caller in callers]
    await store.add_usage(UsageBatch("a", 1, rows[::-1]))
    found: list[DailyUsage] = []
    while page := await store.usage(UsageQuery(n_most=4, after=(found[-1].day, found[-1].caller) if found else None)):
        found += page
    assert found == rows


@pytest.mark.parametrize(
    ("query", "n_rows"),
    [
        ({"caller": "key:k1"}, 3),
        ({"caller": ""}, 3),
        ({"caller": "key:k9"}, 0),
        ({"first_day": DAY + timedelta(days=1)}, 4),
        ({"last_day": DAY}, 2),
        ({"first_day": DAY + timedelta(days=1), "last_day": DAY + timedelta(days=1), "caller": "key:k1"}, 1),
        ({"first_day": DAY + timedelta(days=3)}, 0),
    ],
)
async def test_usage_is_found_by_caller_and_day(store: AccessStore, query: dict[str, Any], n_rows: int):
    rows = [row(caller, DAY + timedelta(days=n), calls=1) for n in range(3) for caller in ("", "key:k1")]
    await store.add_usage(UsageBatch("a", 1, rows))
    assert len(await all_usage(store, **query)) == n_rows


async def test_old_usage_is_deleted_and_the_rest_stays(store: AccessStore):
    rows = [row("key:k1", DAY + timedelta(days=n), calls=1) for n in range(3)]
    await store.add_usage(UsageBatch("a", 1, rows))
    await store.delete_usage(DAY + timedelta(days=1))
    assert await all_usage(store) == rows[1:]


async def test_usage_is_added_again_after_the_table_was_unavailable(tmp_path: Path):
    file = tmp_path / "access.sqlite3"
    store = await sqlite(file)
    change(file, "ALTER TABLE access_usage RENAME TO away")
    batch = UsageBatch("a", 1, [row("key:k1", calls=1)])
    with pytest.raises(SourceUnavailable):  # after the batch was noted, in the same transaction
        await store.add_usage(batch)
    change(file, "ALTER TABLE away RENAME TO access_usage")
    await store.add_usage(batch)
    assert await all_usage(store) == batch.rows
    await store.close()
