"""Usage of jobs, counted exactly once, in the transactions that change the jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import sqlalchemy as sa

from typeless_grpc.access.usage import DailyUsage, Retention, Usage, UsageQuery, usage_caller, utc_day
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.stores import sql_usage
from typeless_grpc.stores.database import Database, job_usage


class JobUsage:
    """Counts the jobs and the transcribed audio of each owner, by the day on this machine's clock."""

    def __init__(self, database: Database, retention_days: int, wall_s: Callable[[], float] = time.time) -> None:
        """retention_days: how long usage is kept. wall_s: Unix time in seconds."""
        self._database, self._wall_s = database, wall_s
        self._retention = Retention(retention_days, wall_s)

    def submitted(self, connection: sa.Connection, owner: str) -> None:
        """Count a job in the transaction that stores it."""
        self._add(connection, owner, Usage(jobs=1))

    def transcribed(self, connection: sa.Connection, owner: str, n_samples: int) -> None:
        """Count audio in the transaction that stores its text."""
        self._add(connection, owner, Usage(audio_us=round(n_samples * 1_000_000 / SAMPLE_RATE_HZ)))

    def page(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """Return a page of usage (see `UsageSource`). Raises SourceUnavailable."""
        with self._database.reading() as connection:
            return sql_usage.page(connection, job_usage, query)

    def delete_old(self) -> None:
        """Delete usage that is older than its retention. Raises SourceUnavailable."""
        with self._database.writing() as connection:
            sql_usage.delete(connection, job_usage, self._retention.first_day())

    def _add(self, connection: sa.Connection, owner: str, usage: Usage) -> None:
        if (caller := usage_caller(owner)) is not None:
            sql_usage.add(connection, job_usage, [DailyUsage(utc_day(self._wall_s()), caller, usage)])


class JobUsageSource:
    """A `UsageSource` that reads in threads."""

    def __init__(self, usage: JobUsage, executor: Executor) -> None:
        self._usage, self._executor = usage, executor

    async def usage(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """See `UsageSource`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._usage.page, query)
