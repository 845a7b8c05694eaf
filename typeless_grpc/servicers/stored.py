"""Calls of the stores, in threads. Their waits are bounded: a disk or a file server may never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from typeless_grpc.errors import SourceUnavailable

T = TypeVar("T")

# A database is given up after 20 s, an object store after 30 s, and a call may need both.
LIMIT_S = 60.0


async def in_store(executor: Executor, call: Callable[..., T], *arguments: Any, limit_s: float | None = None) -> T:
    """Return what a call of a store returns.

    limit_s: `LIMIT_S` by default. Raises SourceUnavailable after it; what the call still writes is as after an answer
    that was lost.
    """
    try:
        async with asyncio.timeout(LIMIT_S if limit_s is None else limit_s) as limit:
            return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)
    except TimeoutError as error:
        if not limit.expired():
            raise
        why = "The store of jobs does not answer now."
        raise SourceUnavailable(why, reason="STORE_UNAVAILABLE", retry_after_s=5.0) from error
