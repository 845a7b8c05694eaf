"""Which call a line of code is working for."""

from __future__ import annotations

from contextvars import ContextVar

# Set by the request-id interceptor for the length of a call, "" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# The moment on the machine's monotonic clock by which the call must have its answer, None where there is none.
deadline_s: ContextVar[float | None] = ContextVar("deadline_s", default=None)
