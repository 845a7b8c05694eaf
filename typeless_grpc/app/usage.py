"""Wires the usage of callers: its recorder, and a reader that needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing

from typeless_grpc.access.registry import Registry
from typeless_grpc.access.usage import UsageOptions, UsageReader, UsageRecorder, UsageSource, UsageStore
from typeless_grpc.app.databases import jobs_database_file, jobs_database_url
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.config import Settings
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.job_usage import JobUsage, JobUsageSource


@asynccontextmanager
async def recorded(store: UsageStore, settings: Settings) -> AsyncIterator[UsageRecorder]:
    """Record usage, and write it to the store periodically and at the end."""
    recorder = UsageRecorder(store, UsageOptions(retention_days=settings.usage_retention_days))
    running = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        await cancelled(running)
        await recorder.close()


@asynccontextmanager
async def stored_usage(settings: Settings, registry: Registry) -> AsyncIterator[UsageReader]:
    """Read the usage in the databases of the settings, without a server. Raises SourceUnavailable."""
    sources: list[UsageSource] = [registry.store]
    with ExitStack() as stack:
        if settings.database_url.get_secret_value() or jobs_database_file(settings).exists():
            threads = stack.enter_context(ThreadPoolExecutor(1, "jobs-store"))
            database = stack.enter_context(closing(Database(jobs_database_url(settings))))
            await asyncio.get_running_loop().run_in_executor(threads, database.create_tables)
            sources.append(JobUsageSource(JobUsage(database, settings.usage_retention_days), threads))
        yield UsageReader(sources)
