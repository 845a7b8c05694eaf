"""Notifies watchers of changes of jobs, by one query of the store for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from typing import Protocol

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.servicers.stored import in_store
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# A watcher must get a change within half a second.
POLL_S = 0.2


class Versions(Protocol):
    """Returns the versions of jobs; `JobStore` implements it."""

    def versions(self, job_ids: Collection[str]) -> Mapping[str, int]: ...


class JobWatch:
    """The watchers of one event loop."""

    def __init__(self, store: Versions, executor: Executor) -> None:
        self._store, self._executor = store, executor
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._polling: asyncio.Task[None] | None = None

    async def changed(self, job_id: str, version: int) -> None:
        """Wait until the job has another version, or is deleted."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = (job_id, version)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            await waiter
        finally:
            del self._waiting[waiter]

    async def close(self) -> None:
        """Stop the queries."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

    async def _poll(self) -> None:
        """Wake waiters whose job has changed, with one query for all, until nobody waits."""
        while self._waiting:
            job_ids = {job_id for job_id, _ in self._waiting.values()}
            try:
                versions = await in_store(self._executor, self._store.versions, job_ids)
            except SourceUnavailable as error:
                log.warning("watched jobs cannot be read; retrying", reason=error.reason)
            else:
                for waiter, (job_id, version) in self._waiting.items():
                    if job_id in job_ids and versions.get(job_id) != version and not waiter.done():
                        waiter.set_result(None)
            await asyncio.sleep(POLL_S)
