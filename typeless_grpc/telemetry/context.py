"""The context of the current call, and threads that keep it."""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from typeless_grpc.access import principal

# Set by the request-id interceptor for the length of a call, "" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# The call's deadline on the monotonic clock, None if it has none.
deadline_s: ContextVar[float | None] = ContextVar("deadline_s", default=None)

# When a caller cancels, its requests end as if half-closed, and the handler is cancelled a moment later. Code that ends
# something at the end of the requests waits this long for a cancellation.
HALF_CLOSE_GRACE_S = 0.02

# The trace that the code works for: its id in hexadecimal, and the headers that continue it elsewhere (W3C Trace
# Context). Empty without a trace. `telemetry/tracing/` sets them.
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))


class CallThreads(ThreadPoolExecutor):
    """Threads that run each task in the context of the call that submitted it, so that log lines name the call.

    Callers take turns: the next task is of the caller with the fewest running tasks; among equals, of the one that was
    served longest ago. A running task cannot be preempted, so another max_workers threads are reserved for callers
    without a running task: one caller may use all of max_workers, and the next caller still starts at once.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str = "") -> None:
        super().__init__(2 * max_workers, thread_name_prefix)
        super().submit(int).result()  # one thread is there from the start, also if later no other can be started
        self._n_shared = max_workers
        self._turns = threading.Lock()
        self._queues: dict[str, deque[_Work]] = {}  # the caller that was served longest ago comes first
        self._running: Counter[str] = Counter()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `ThreadPoolExecutor`."""
        caller = principal.current().id
        work = _Work(caller, Future(), functools.partial(copy_context().run, fn, *args, **kwargs))
        with self._turns:
            self._queues.setdefault(caller, deque()).append(work)
            self._begin()
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `ThreadPoolExecutor`."""
        with self._turns:
            waiting = [work for queue in self._queues.values() for work in queue]
            self._queues.clear()
            for work in waiting:
                self._running[work.caller] += 1
                if not cancel_futures or not work.future.cancel():
                    self._start(work)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _begin(self) -> None:
        """Start queued tasks while threads are free."""
        while self._queues:
            caller = min(self._queues, key=lambda one: self._running[one])
            n_running = self._running.total()
            if n_running >= (self._n_shared if self._running[caller] else 2 * self._n_shared):
                return
            queue = self._queues.pop(caller)
            work = queue.popleft()
            if queue:
                self._queues[caller] = queue
            if work.future.cancelled():
                continue
            self._running[caller] += 1
            self._start(work)

    def _start(self, work: _Work) -> None:
        try:
            super().submit(self._run, work)
        except RuntimeError as error:
            # The task is queued before a thread is started for it: one of those that are there runs it.
            if "can't start new thread" not in str(error):
                raise

    def _run(self, work: _Work) -> None:
        """Run a task in a thread, and then start queued ones."""
        try:
            if work.future.set_running_or_notify_cancel():
                try:
                    result = work.run()
                except BaseException as error:
                    work.future.set_exception(error)
                else:
                    work.future.set_result(result)
        finally:
            with self._turns:
                self._running[work.caller] -= 1
                if not self._running[work.caller]:
                    del self._running[work.caller]
                self._begin()


@dataclass(frozen=True, eq=False)
class _Work:
    """A submitted task. run: runs it in the context of its call."""

    caller: str
    future: Future[Any]
    run: Callable[[], Any]
