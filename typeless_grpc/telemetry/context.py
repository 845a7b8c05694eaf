"""Which call a line of code is working for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

# Set by the request-id interceptor for the length of a call, "" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# The moment on the machine's monotonic clock by which the call must have its answer, None where there is none.
deadline_s: ContextVar[float | None] = ContextVar("deadline_s", default=None)


class CallThreads(ThreadPoolExecutor):
    """Threads that work for calls, each piece of work in the context of the call that handed it in.

    Without it a log line of such a thread would not say which call it is about.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `ThreadPoolExecutor`."""
        return super().submit(copy_context().run, fn, *args, **kwargs)
