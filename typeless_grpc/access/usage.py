"""Counts the usage of callers in memory, and adds it to a store that many servers share.

No call waits for the store. Counts are written every few seconds as sums to add, so servers need not know of one
another. An answer to a write can be lost after the store has committed it. So a batch of counts has a number, and is
sent again unchanged until the store confirms it; the store adds each number of a writer once.

While the store is unavailable, counts stay in memory. Only a process that is killed loses what it has not written.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from typeless_grpc.account import CallAccount
from typeless_grpc.errors import SourceUnavailable

log = logging.getLogger(__name__)

ANONYMOUS = ""  # all callers without a key or token together
_KEY, _TOKEN = "key:", "token:"
SWEEP_S = 3600.0


@dataclass(frozen=True)
class Usage:
    """A sum of what was used. audio_us: microseconds, because integers add up exactly in any order."""

    calls: int = 0
    failed_calls: int = 0
    audio_us: int = 0
    jobs: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.failed_calls + other.failed_calls,
            self.audio_us + other.audio_us,
            self.jobs + other.jobs,
        )


@dataclass(frozen=True)
class DailyUsage:
    """What a caller used on a day (UTC). caller: "key:ID", "token:SUBJECT", or `ANONYMOUS`."""

    day: date
    caller: str
    usage: Usage

    @property
    def key_id(self) -> str:
        """The id of the caller's key; "" if it has none."""
        return self.caller.removeprefix(_KEY) if self.caller.startswith(_KEY) else ""

    @property
    def token_subject(self) -> str:
        """The subject of the caller's token; "" if it has none."""
        return self.caller.removeprefix(_TOKEN) if self.caller.startswith(_TOKEN) else ""


@dataclass(frozen=True)
class UsageBatch:
    """Counts to add, at most one row for each caller and day. sequence: counts a writer's batches, from 1."""

    writer_id: str
    sequence: int
    rows: Sequence[DailyUsage]


@dataclass(frozen=True)
class UsageQuery:
    """A page of usage. caller: only this one. after: the day and caller of the last row of the page before."""

    n_most: int
    caller: str | None = None
    first_day: date | None = None
    last_day: date | None = None
    after: tuple[date, str] | None = None


class UsageSource(Protocol):
    """A source of usage: the store of keys has that of calls, the store of jobs that of jobs."""

    async def usage(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """Return a page in the order of day and caller (by code point), one row for each. Raises SourceUnavailable."""
        ...


class UsageStore(UsageSource, Protocol):
    """Durable usage. Every call raises SourceUnavailable if the store is unavailable."""

    async def add_usage(self, batch: UsageBatch) -> None:
        """Add a batch, all of it or nothing. A batch that was added before changes nothing."""
        ...

    async def delete_usage(self, before: date) -> None:
        """Delete the usage of earlier days."""
        ...


@dataclass(frozen=True)
class UsageOptions:
    """How usage is recorded.

    flush_s: between writes to the store. retention_days: how long usage is kept. max_pending: counts in memory, one for
    each caller and day; beyond it, what further callers use counts as that of callers without a key. max_batch: rows
    of one write. close_s: how long the last write is repeated while the store is unavailable.
    """

    flush_s: float = 5.0
    retention_days: int = 400
    max_pending: int = 100_000
    max_batch: int = 1000
    close_s: float = 5.0


def usage_caller(owner: str) -> str | None:
    """Return the caller, as in `DailyUsage`, for an owner (see `Principal`).

    None if keys are off: then nothing is counted.
    """
    if not owner:
        return None
    return owner if owner.startswith((_KEY, _TOKEN)) else ANONYMOUS


def caller_of_key(key_id: str) -> str:
    """Return the caller that uses a key, as in `DailyUsage`."""
    return f"{_KEY}{key_id}"


def utc_day(unix_s: float) -> date:
    """Return the day, in UTC, of a Unix time in seconds."""
    return datetime.fromtimestamp(unix_s, UTC).date()


class Retention:
    """Decides which days are kept. A clock that is set ahead while the process runs does not expire days."""

    def __init__(self, days: int, wall_s: Callable[[], float], steady_s: Callable[[], float] = time.monotonic) -> None:
        """days: how many are kept. wall_s: Unix time in seconds. steady_s: a clock that is never set."""
        self._days, self._wall_s, self._steady_s = days, wall_s, steady_s
        self._offset_s = wall_s() - steady_s()

    def first_day(self) -> date:
        """Return the first day that is kept."""
        return utc_day(min(self._wall_s(), self._offset_s + self._steady_s())) - timedelta(days=self._days)


class UsageReader:
    """All usage: of calls and of jobs."""

    def __init__(self, sources: Sequence[UsageSource], recorder: UsageRecorder | None = None) -> None:
        """recorder: of this server, whose counts are written before they are read."""
        self._sources, self._recorder = sources, recorder

    async def page(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """Return a page in the order of day and caller. Raises SourceUnavailable."""
        if self._recorder is not None:
            await self._recorder.flush()
        pages = await asyncio.gather(*(source.usage(query) for source in self._sources))
        rows = heapq.merge(*pages, key=_order)
        sums = (
            DailyUsage(*key, sum((row.usage for row in same), Usage())) for key, same in itertools.groupby(rows, _order)
        )
        return list(itertools.islice(sums, query.n_most))


def _order(row: DailyUsage) -> tuple[date, str]:
    return row.day, row.caller


@dataclass(eq=False)
class _OpenCall:
    """A call that has not ended."""

    account: CallAccount
    audio_us: int = 0  # of the account's audio, already counted


@dataclass
class UsageRecorder:
    """Counts the calls of one server, also the audio of calls that are still open."""

    store: UsageStore
    options: UsageOptions = field(default_factory=UsageOptions)
    wall_s: Callable[[], float] = time.time
    _open: dict[CallAccount, _OpenCall] = field(default_factory=dict, init=False)
    _pending: dict[tuple[date, str], Usage] = field(default_factory=dict, init=False)
    _batch: UsageBatch | None = field(default=None, init=False)
    _sequence: int = field(default=0, init=False)
    _writer_id: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _flushing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def call_started(self, account: CallAccount) -> None:
        """A call has begun; its account has no caller yet."""
        self._open[account] = _OpenCall(account)

    def call_ended(self, account: CallAccount, *, is_failed: bool) -> None:
        """A call has ended. It counts if its caller is known, and so not if it was refused for its key."""
        if (call := self._open.pop(account, None)) is not None:
            self._add(call, Usage(calls=1, failed_calls=int(is_failed)))

    async def flush(self) -> None:
        """Write all counts to the store. Raises SourceUnavailable; the counts are kept then."""
        async with self._flushing:
            for call in self._open.values():
                self._add(call, Usage())
            while self._batch or self._pending:
                self._batch = self._batch or self._next_batch()
                await self.store.add_usage(self._batch)
                self._batch = None

    async def run(self) -> None:
        """Write and sweep periodically, until cancelled. The loop survives every error."""
        retention = Retention(self.options.retention_days, self.wall_s)
        swept_s: float | None = None
        is_logged = False
        while True:
            await asyncio.sleep(self.options.flush_s)
            try:
                await self.flush()
                if swept_s is None or time.monotonic() - swept_s >= SWEEP_S:
                    await self.store.delete_usage(retention.first_day())
                    swept_s = time.monotonic()
                is_logged = False
            except SourceUnavailable:
                pass  # the reader of the keys reports it
            except Exception:
                if not is_logged:  # the first of a row
                    log.exception("usage cannot be written; retrying")
                is_logged = True

    async def close(self) -> None:
        """Write what is left; give up and log it after `close_s`."""
        end_s = time.monotonic() + self.options.close_s
        while True:
            try:
                return await self.flush()
            except Exception as error:  # no error may keep the server from stopping
                if time.monotonic() >= end_s:
                    lost = self._unwritten()
                    log.error(
                        "usage of %d calls and %.0f s of audio is lost: it cannot be written (%s)",
                        lost.calls,
                        lost.audio_us / 1e6,
                        type(error).__name__,
                    )
                    return None
            await asyncio.sleep(0.25)

    def _add(self, call: _OpenCall, usage: Usage) -> None:
        caller = usage_caller(call.account.owner)
        audio_us = round(call.account.audio_s * 1e6)
        usage += Usage(audio_us=audio_us - call.audio_us)
        call.audio_us = audio_us
        if caller is None or usage == Usage():
            return
        key = utc_day(self.wall_s()), caller
        if key not in self._pending and len(self._pending) >= self.options.max_pending:
            key = key[0], ANONYMOUS
        self._pending[key] = self._pending.get(key, Usage()) + usage

    def _next_batch(self) -> UsageBatch:
        keys = list(itertools.islice(self._pending, self.options.max_batch))
        self._sequence += 1
        return UsageBatch(self._writer_id, self._sequence, [DailyUsage(*key, self._pending.pop(key)) for key in keys])

    def _unwritten(self) -> Usage:
        rows = self._batch.rows if self._batch else ()
        return sum((*(row.usage for row in rows), *self._pending.values()), Usage())
