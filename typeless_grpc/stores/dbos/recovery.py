"""Adds what the free part of DBOS lacks: heartbeats, and the recovery of jobs whose workers died or could not write.

A worker is dead if its heartbeat has not changed for `worker_timeout_s`; on the same machine at once, because it holds
a lock on a file as long as it lives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.dbos.liveness import LivenessLock, OwnHeartbeat, PeerHeartbeats
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# How often jobs that have left the queue by mistake are searched for, among those that have not changed for as long.
REPAIR_S = 30.0


class HeldWorkflows(Protocol):
    """The part of `Workflows` that recovery needs."""

    def active(self) -> set[str]: ...
    def executors(self) -> set[str]: ...
    def held(self) -> set[str]: ...
    def requeue(self, workflow_id: str) -> None: ...
    def reassign(self, workers: Collection[str]) -> None: ...
    def is_queued(self) -> sa.ColumnElement[bool]: ...


class Recovery:
    """Sends this worker's heartbeats, and puts jobs back into the queue whose run has died."""

    def __init__(
        self,
        workflows: HeldWorkflows,
        maintenance: JobMaintenance,
        worker_id: str,
        own: OwnHeartbeat,
        *,
        max_jobs: int,
        worker_timeout_s: float,
        locks: Path,
    ) -> None:
        """own: counts from the worker's start. locks: the directory of the workers' liveness locks."""
        self._workflows, self._maintenance, self._worker_id = workflows, maintenance, worker_id
        self._own, self._peers = own, PeerHeartbeats(worker_timeout_s)
        self._max_jobs, self._locks = max_jobs, locks
        self._idle: set[str] = set()

    def heartbeat(self) -> None:
        """Send a heartbeat, and recover jobs. Raises SourceUnavailable."""
        self._maintenance.heartbeat(self._worker_id, self._max_jobs)
        self._own.sent()
        self.reassign_jobs_of_the_dead()
        self.requeue_idle()

    def reassign_jobs_of_the_dead(self) -> None:
        """Put the jobs of dead workers back into the queue."""
        executors = self._workflows.executors()  # first: a worker sends a heartbeat before it takes a job
        known = self._maintenance.workers()
        dead = {worker for worker in known if LivenessLock.is_dead(self._locks, worker)}
        silent = self._peers.silent(known)
        if self._own.trusts_silence:
            dead |= silent
        dead |= executors - known.keys()
        dead.discard(self._worker_id)
        if not dead:
            return
        self._workflows.reassign(dead)
        self._maintenance.sign_off(dead)
        for worker in dead:
            (self._locks / worker).unlink(missing_ok=True)
        log.info("jobs of dead workers are reassigned", workers=sorted(dead))

    def requeue_idle(self) -> None:
        """Put back jobs that this worker holds but does not run: their run ended while the database was unavailable.

        It takes only jobs that were idle at the previous heartbeat, too, because DBOS records a job a moment before it
        runs it.
        """
        idle = self._workflows.held() - self._workflows.active()
        for workflow_id in idle & self._idle:
            self._workflows.requeue(workflow_id)
        self._idle = idle - self._idle

    def repair(self) -> None:
        """Queue jobs again that wait for a run and are not in the queue, which should not happen."""
        if n_repaired := self._maintenance.queue_again(self._workflows.is_queued(), REPAIR_S):
            log.warning("jobs that had left the queue were put back", n_jobs=n_repaired)


@dataclass
class Duty:
    """A call that the maintenance loop repeats: at each of its rounds, or after an interval."""

    call: Callable[[], None]
    interval_s: float = 0.0
    due_s: float = 0.0

    def run_if_due(self) -> None:
        """Call it, unless the last call was less than the interval ago."""
        if time.monotonic() >= self.due_s:
            self.due_s = time.monotonic() + self.interval_s
            self.call()


class MaintenanceLoop:
    """Repeats duties in a thread of its own; an error in one does not end it."""

    def __init__(self, duties: Sequence[Duty], pause_s: float) -> None:
        self._duties, self._pause_s = duties, pause_s

    def run(self, stopping: threading.Event) -> None:
        """Repeat the duties until `stopping` is set."""
        while not stopping.is_set():
            for duty in self._duties:
                if stopping.is_set():
                    return
                try:
                    duty.run_if_due()
                except SourceUnavailable as error:
                    log.warning("the store of jobs is unavailable", reason=error.reason)
                except Exception:
                    log.exception("unforeseen error in the maintenance of jobs")
            stopping.wait(self._pause_s)
