"""Starts the server under attack and its witness, and says what an attack has done to them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.wire import node, witness
from tests.wire.http2 import Peer
from tests.wire.node import State
from tests.wire.witness import Testimony

SETTLE_S = 30.0
MIB = 1024 * 1024
# What is not given back at once, or never: caches, threads of a pool that grows as needed. The allocator keeps some of
# what an attack needed, and uses it for the next one: an attack may leave so much, and all of them three times as much.
MEMORY_SLACK_BYTES = 64 * MIB
THREADS_SLACK = 24
DESCRIPTORS_SLACK = 6
TASKS_SLACK = 2

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.wire.node", "tests.wire.witness"])


@dataclass
class Attacked:
    """A server in a process of its own, with a witness in another."""

    port: int
    log: Path
    _control: Connection
    _witness: Connection
    baseline: State = field(init=False)
    _before_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Let nothing of what the server has now count as left over."""
        self.baseline = self.state()
        self._before_bytes = self.baseline.memory_bytes

    def peer(self, **options: Any) -> Peer:
        return Peer(self.port, **options)

    def state(self, *, at_rest: bool = False) -> State:
        """Ask the server; at rest, once it has returned free memory. Raises EOFError if it has ended."""
        self._control.send(node.STATE_AT_REST if at_rest else node.STATE)
        if not self._control.poll(SETTLE_S):
            raise TimeoutError("the event loop of the server does not answer")
        state: State = self._control.recv()
        return state

    @contextmanager
    def witnessed(self) -> Iterator[Testimony]:
        """A period for which the witness calls; the testimony is filled in at its end."""
        testimony = Testimony()
        self._witness.send("begin")
        try:
            yield testimony
        finally:
            self._witness.send("end")
            if not self._witness.poll(2 * witness.PATIENCE_S):
                raise TimeoutError("the witness gets no answers")
            result: Testimony = self._witness.recv()
            testimony.latencies_s, testimony.complaints = result.latencies_s, result.complaints

    def settled(self, timeout_s: float = SETTLE_S) -> list[str]:
        """Wait until the server holds no more than at first; return what it still holds too much of."""
        deadline_s = time.monotonic() + timeout_s
        while (left := self._left()) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        self._before_bytes = max(self._before_bytes, self.state(at_rest=True).memory_bytes)
        return left

    def problems(self) -> list[str]:
        """What the log has that no caller may cause."""
        return node.problems(self.log)

    def _left(self) -> list[str]:
        now, first = self.state(at_rest=True), self.baseline
        most_bytes = min(self._before_bytes + MEMORY_SLACK_BYTES, first.memory_bytes + 3 * MEMORY_SLACK_BYTES)
        held = {
            "tasks": (now.n_tasks, first.n_tasks + TASKS_SLACK),
            "threads": (now.n_threads, first.n_threads + THREADS_SLACK),
            "descriptors": (now.n_descriptors, first.n_descriptors + DESCRIPTORS_SLACK),
            "bytes of memory": (now.memory_bytes, most_bytes),
        }
        return [f"{now} {what}, at most {most} expected" for what, (now, most) in held.items() if now > most]


@contextmanager
def attacked(directory: Path, **settings: Any) -> Iterator[Attacked]:
    """A server, warm, and its witness."""
    log = directory / "server.log"
    ours, theirs = CONTEXT.Pipe()
    server = CONTEXT.Process(target=node.run, args=(log, settings, theirs), daemon=True)
    server.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise TimeoutError(f"the server did not start: {log.read_text()}")
        port = ours.recv()
        mine, its = CONTEXT.Pipe()
        watching = CONTEXT.Process(target=witness.run, args=(port, its), daemon=True)
        watching.start()
        its.close()
        try:
            if not mine.poll(60):
                raise TimeoutError("the witness did not start")
            mine.recv()
            running = Attacked(port, log, ours, mine)
            with running.witnessed():
                time.sleep(0.5)  # what is made once, such as pools of threads, is made now
            running.begin()
            yield running
        finally:
            mine.close()
            watching.join(10)
            watching.kill()
        ours.send(node.STOP)
        server.join(20)
        if server.exitcode != 0:
            raise AssertionError(f"the server ended with {server.exitcode}: {log.read_text()[-2000:]}")
    finally:
        ours.close()
        server.kill()
        server.join()
