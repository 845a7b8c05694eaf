"""Threads of calls: which caller's task runs next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest

from typeless_grpc.access import principal
from typeless_grpc.access.principal import Principal
from typeless_grpc.telemetry.context import CallThreads


def submit(threads: CallThreads, caller: str, work: Callable[[], Any]) -> Future[Any]:
    token = principal.enter(Principal(caller, caller))
    try:
        return threads.submit(work)
    finally:
        principal.leave(token)


class Blocked:
    """Tasks that run until the gate opens. began: the callers whose tasks began, in order."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began: list[str] = []
        self.changed = threading.Condition()

    def by(self, caller: str) -> Callable[[], None]:
        def work() -> None:
            with self.changed:
                self.began.append(caller)
                self.changed.notify_all()
            assert self.gate.wait(10)

        return work

    def wait_for(self, n_began: int) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.began) >= n_began, 10)
            return list(self.began)


def test_a_caller_may_use_all_threads_and_another_does_not_wait_for_it():
    blocked = Blocked()
    with CallThreads(2) as threads:
        many = [submit(threads, "many", blocked.by("many")) for _ in range(1000)]
        assert blocked.wait_for(2) == ["many", "many"]
        assert submit(threads, "one", lambda: "done").result(10) == "done"
        assert submit(threads, "another", lambda: "done").result(10) == "done"
        assert blocked.began == ["many", "many"]
        blocked.gate.set()
        wait(many, 10)
    assert len(blocked.began) == 1000


def test_callers_take_turns_and_each_keeps_its_order():
    gate, done = threading.Event(), list[str]()
    with CallThreads(1) as threads:
        first = [submit(threads, name, lambda: gate.wait(10)) for name in ("x", "y")]  # all threads there are
        waiting = [
            submit(threads, name, lambda text=f"{name}{number}": done.append(text))
            for name in ("a", "b")
            for number in range(3)
        ]
        gate.set()
        wait([*first, *waiting], 10)
    assert [text for text in done if text[0] == "a"] == ["a0", "a1", "a2"]
    assert [text for text in done if text[0] == "b"] == ["b0", "b1", "b2"]
    assert done.index("b0") < done.index("a2")


def test_a_cancelled_task_does_not_run_and_errors_reach_the_waiting_caller():
    blocked = Blocked()

    def fails() -> None:
        raise OSError("no")

    with CallThreads(1) as threads:
        submit(threads, "a", blocked.by("a"))
        blocked.wait_for(1)
        cancelled, failed = submit(threads, "a", blocked.by("never")), submit(threads, "a", fails)
        assert cancelled.cancel()
        blocked.gate.set()
        with pytest.raises(OSError, match="no"):
            failed.result(10)
    assert blocked.began == ["a"]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_queued_tasks_run_or_are_cancelled_at_shutdown(is_cancelled: bool):
    blocked = Blocked()
    threads = CallThreads(1)
    submit(threads, "a", blocked.by("a"))
    blocked.wait_for(1)
    waiting = submit(threads, "a", lambda: "done")
    threads.shutdown(wait=False, cancel_futures=is_cancelled)
    blocked.gate.set()
    if is_cancelled:
        with pytest.raises(CancelledError):
            waiting.result(10)
    else:
        assert waiting.result(10) == "done"
