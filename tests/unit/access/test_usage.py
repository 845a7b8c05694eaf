from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.access.usage import (
    DailyUsage,
    Retention,
    Usage,
    UsageBatch,
    UsageOptions,
    UsageQuery,
    UsageReader,
    UsageRecorder,
    usage_caller,
)
from typeless_grpc.account import CallAccount
from typeless_grpc.clock import FakeClock
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.memory_access import MemoryAccessStore, unavailable

MIDNIGHT_S = datetime(2025, 2, 1, tzinfo=UTC).timestamp()
BEFORE, AFTER = date(2025, 1, 31), date(2025, 2, 1)
ALL = UsageQuery(n_most=1000)


class Wall:
    """A clock on the wall, in Unix seconds."""

    def __init__(self) -> None:
        self.now_s = MIDNIGHT_S + 60

    def __call__(self) -> float:
        return self.now_s


class LossyStore(MemoryAccessStore):
    """Adds batches, but loses the first answers."""

    def __init__(self, n_lost: int) -> None:
        super().__init__()
        self.n_lost = n_lost
        self.sizes: list[int] = []

    async def add_usage(self, batch: UsageBatch) -> None:
        await super().add_usage(batch)
        self.sizes.append(len(batch.rows))
        if self.n_lost > 0:
            self.n_lost -= 1
            raise unavailable()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store() -> MemoryAccessStore:
    return MemoryAccessStore()


def call(recorder: UsageRecorder, owner: str, audio_s: float = 0.0, *, is_failed: bool = False) -> None:
    account = CallAccount()
    recorder.call_started(account)
    account.owner, account.audio_s = owner, audio_s
    recorder.call_ended(account, is_failed=is_failed)


async def stored(store: MemoryAccessStore) -> dict[str, Usage]:
    """From caller to the usage of all days."""
    rows = await store.usage(ALL)
    assert len({row.caller for row in rows}) == len(rows)
    return {row.caller: row.usage for row in rows}


async def test_calls_count_for_their_caller(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, wall_s=wall)
    for n in range(3):
        call(recorder, "key:k1", 0.1, is_failed=n == 0)
    call(recorder, "token:ann", 2.5)
    call(recorder, "address:192.0.2.1")
    call(recorder, "address:192.0.2.2")
    call(recorder, "")  # refused for its key
    await recorder.flush()
    assert await stored(store) == {
        "key:k1": Usage(calls=3, failed_calls=1, audio_us=300_000),
        "token:ann": Usage(calls=1, audio_us=2_500_000),
        "": Usage(calls=2),
    }


async def test_audio_of_an_open_call_counts_while_it_runs_and_once(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, wall_s=wall)
    account = CallAccount()
    recorder.call_started(account)
    await recorder.flush()  # before the caller is known
    account.owner = "key:k1"
    for n in range(1, 11):
        account.audio_s += 0.1  # not exact as a float
        if n % 3 == 0:
            await recorder.flush()
            assert await stored(store) == {"key:k1": Usage(audio_us=n * 100_000)}
    recorder.call_ended(account, is_failed=False)
    recorder.call_ended(account, is_failed=False)
    await recorder.flush()
    assert await stored(store) == {"key:k1": Usage(calls=1, audio_us=1_000_000)}


async def test_usage_belongs_to_the_day_on_which_it_was_counted(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, wall_s=wall)
    account = CallAccount(owner="key:k1", audio_s=60.0)
    wall.now_s = MIDNIGHT_S - 1
    recorder.call_started(account)
    call(recorder, "key:k1")
    await recorder.flush()
    account.audio_s = 90.0
    wall.now_s = MIDNIGHT_S
    recorder.call_ended(account, is_failed=False)
    await recorder.flush()
    assert await store.usage(ALL) == [
        DailyUsage(BEFORE, "key:k1", Usage(calls=1, audio_us=60_000_000)),
        DailyUsage(AFTER, "key:k1", Usage(calls=1, audio_us=30_000_000)),
    ]


async def test_nothing_is_lost_while_the_store_is_unavailable(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, wall_s=wall)
    store.is_unavailable = True
    for n in range(10):
        call(recorder, f"key:k{n % 2}", 1.0)
        with pytest.raises(SourceUnavailable):
            await recorder.flush()
    store.is_unavailable = False
    await recorder.flush()
    await recorder.flush()
    assert await stored(store) == {f"key:k{n}": Usage(calls=5, audio_us=5_000_000) for n in range(2)}


async def test_a_batch_whose_answer_is_lost_is_added_once(wall: Wall):
    store = LossyStore(n_lost=3)
    recorder = UsageRecorder(store, wall_s=wall)
    for _ in range(5):
        call(recorder, "key:k1", 1.0)
        try:
            await recorder.flush()
        except SourceUnavailable:
            continue
    assert await stored(store) == {"key:k1": Usage(calls=5, audio_us=5_000_000)}


async def test_a_flush_that_is_cancelled_loses_and_repeats_nothing(wall: Wall):
    class SlowStore(MemoryAccessStore):
        reached = asyncio.Event()

        async def add_usage(self, batch: UsageBatch) -> None:
            await super().add_usage(batch)
            self.reached.set()
            await asyncio.Event().wait()

    slow = SlowStore()
    recorder = UsageRecorder(slow, wall_s=wall)
    call(recorder, "key:k1")
    flushing = asyncio.create_task(recorder.flush())
    await slow.reached.wait()
    flushing.cancel()
    await asyncio.wait([flushing])
    call(recorder, "key:k1")
    recorder.store = later = MemoryAccessStore()
    await recorder.flush()
    assert await stored(slow) == {"key:k1": Usage(calls=1)}
    # The first batch again, unchanged, which the slow store would have ignored, and the second.
    assert await stored(later) == {"key:k1": Usage(calls=2)}


async def test_memory_is_bounded_and_sums_stay_true(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, UsageOptions(max_pending=3), wall)
    store.is_unavailable = True
    for n in range(10):
        call(recorder, f"token:{n}")
    call(recorder, "token:0")
    store.is_unavailable = False
    await recorder.flush()
    assert await stored(store) == {
        "token:0": Usage(calls=2),
        "token:1": Usage(calls=1),
        "token:2": Usage(calls=1),
        "": Usage(calls=7),
    }


async def test_batches_are_small(wall: Wall):
    store = LossyStore(n_lost=0)
    recorder = UsageRecorder(store, UsageOptions(max_batch=4), wall)
    for n in range(10):
        call(recorder, f"key:{n}")
    await recorder.flush()
    assert store.sizes == [4, 4, 2]
    assert len(await stored(store)) == 10


async def test_the_loop_writes_and_sweeps_and_survives_every_error(wall: Wall):
    failures = [unavailable(), ValueError("a bug")]

    class FailingStore(MemoryAccessStore):
        swept = asyncio.Event()

        async def add_usage(self, batch: UsageBatch) -> None:
            if failures:
                raise failures.pop(0)
            await super().add_usage(batch)

        async def delete_usage(self, before: date) -> None:
            await super().delete_usage(before)
            self.swept.set()

    store = FailingStore()
    old = DailyUsage(date(2025, 1, 21), "key:k1", Usage(calls=1))
    kept = DailyUsage(date(2025, 1, 22), "key:k1", Usage(calls=1))
    await MemoryAccessStore.add_usage(store, UsageBatch("other", 1, [old, kept]))
    recorder = UsageRecorder(store, UsageOptions(flush_s=0.001, retention_days=10), wall)
    call(recorder, "key:k1")
    running = asyncio.create_task(recorder.run())
    async with asyncio.timeout(30):
        await store.swept.wait()
    running.cancel()
    assert await store.usage(ALL) == [kept, DailyUsage(AFTER, "key:k1", Usage(calls=1))]


def test_a_clock_that_is_set_ahead_makes_no_day_old(wall: Wall):
    steady = FakeClock()
    retention = Retention(10, wall, steady.now_s)
    assert retention.first_day() == date(2025, 1, 22)
    wall.now_s += 500 * 86_400.0
    assert retention.first_day() == date(2025, 1, 22)
    steady.advance(86_400.0)
    assert retention.first_day() == date(2025, 1, 23)
    wall.now_s = MIDNIGHT_S - 86_400.0
    assert retention.first_day() == date(2025, 1, 21)


async def test_usage_that_cannot_be_written_at_the_end_is_logged(
    store: MemoryAccessStore, wall: Wall, caplog: pytest.LogCaptureFixture
):
    recorder = UsageRecorder(store, UsageOptions(close_s=0.0), wall)
    call(recorder, "key:k1", 61.0)
    call(recorder, "key:k2")
    store.is_unavailable = True
    await recorder.close()
    assert "usage of 2 calls and 61 s of audio is lost" in caplog.text


async def test_the_end_waits_for_a_store_that_comes_back(store: MemoryAccessStore, wall: Wall):
    recorder = UsageRecorder(store, UsageOptions(close_s=math.inf), wall)
    call(recorder, "key:k1")
    store.is_unavailable = True
    closing = asyncio.create_task(recorder.close())
    await until_idle()
    store.is_unavailable = False
    await closing
    assert await stored(store) == {"key:k1": Usage(calls=1)}


async def test_pages_of_several_sources_are_one_list(wall: Wall):
    class Pages(MemoryAccessStore):
        def __init__(self, *rows: DailyUsage) -> None:
            super().__init__()
            self.rows = rows

        async def usage(self, query: UsageQuery) -> Sequence[DailyUsage]:
            await self.add_usage(UsageBatch("w", 1, self.rows))
            return await super().usage(query)

    def row(day: date, caller: str, calls: int) -> DailyUsage:
        return DailyUsage(day, caller, Usage(calls=calls))

    one = Pages(row(BEFORE, "key:a", 1), row(BEFORE, "key:c", 2), row(AFTER, "key:a", 4))
    other = Pages(row(BEFORE, "key:b", 8), row(BEFORE, "key:c", 16), row(AFTER, "", 32))
    everything = [
        row(BEFORE, "key:a", 1),
        row(BEFORE, "key:b", 8),
        row(BEFORE, "key:c", 18),
        row(AFTER, "", 32),
        row(AFTER, "key:a", 4),
    ]
    reader = UsageReader([one, other])
    for n_most in range(1, 7):
        found: list[DailyUsage] = []
        after = None
        while page := await reader.page(UsageQuery(n_most, after=after)):
            assert len(page) <= n_most
            found += page
            after = page[-1].day, page[-1].caller
        assert found == everything


@pytest.mark.parametrize(
    ("owner", "caller"),
    [("key:k1", "key:k1"), ("token:ann", "token:ann"), ("address:::1", ""), ("", None)],
)
def test_usage_belongs_to_the_key_or_the_token(owner: str, caller: str | None):
    assert usage_caller(owner) == caller
