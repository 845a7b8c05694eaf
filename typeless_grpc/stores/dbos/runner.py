"""Runs a worker with DBOS, which hands pending jobs to this process, gives each a thread, and records each step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.jobs.turns import Turns
from typeless_grpc.jobs.worker import RunEnd, Worker
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.dbos import patches
from typeless_grpc.stores.dbos.liveness import LivenessLock, OwnHeartbeat
from typeless_grpc.stores.dbos.queue import APPLICATION, QUEUE, VERSION, WORKFLOW, partition, prepare
from typeless_grpc.stores.dbos.recovery import REPAIR_S, Duty, MaintenanceLoop, Recovery
from typeless_grpc.stores.dbos.workflows import Workflows
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.telemetry.logs import get_logger

if TYPE_CHECKING:
    pass

log = get_logger(__name__)

# How often runs are checked for a lost lease: a cancelled job must stop within two seconds.
WATCH_S = 0.5
RETRY_S = 2.0

# A process can have only one DBOS.
_only_one = threading.Lock()


class _NotRecorded(BaseException):
    """Ends a step or a workflow without an outcome. DBOS records an Exception, and raises it again in every later run.

    error: what the step raised.
    """

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True)
class DbosOptions:
    """How this process runs jobs.

    max_jobs: jobs at once, above 0. poll_s: interval of polls of the queue. worker_timeout_s: time without a heartbeat
    after which a worker is dead. locks: directory for the liveness locks of this machine's workers.
    """

    max_jobs: int
    poll_s: float
    worker_timeout_s: float
    locks: Path


class DbosRunner:
    """Runs jobs in this process, from `start` to `stop`. A process can run only one at a time."""

    def __init__(self, database: Database, maintenance: JobMaintenance, worker: Worker, options: DbosOptions) -> None:
        self._database, self._maintenance, self._worker, self._options = database, maintenance, worker, options
        self._stopping, self._started = threading.Event(), threading.Event()
        self._maintaining: threading.Thread | None = None
        self._lock: LivenessLock | None = None
        self._workflows: Workflows | None = None
        self._preempted: set[str] = set()
        self._waiting: Callable[[], list[str]] = list
        self._turns = Turns(options.max_jobs, self._n_running)

    def start(self) -> None:
        """Begin to take jobs; blocks for a second or more.

        Waits until the database is available and no other worker runs in this process. Returns early after `stop`.
        """
        own = OwnHeartbeat(self._options.worker_timeout_s)  # from now: waiting for the database counts as silence
        try:
            while not _only_one.acquire(timeout=0.1):
                if self._stopping.is_set():
                    return
            while not self._stopping.is_set() and self._workflows is None:
                self._try_to_launch()
            if self._workflows is None:
                _only_one.release()
            else:
                loop = self._maintenance_loop(self._workflows, own)
                self._maintaining = threading.Thread(
                    target=loop.run, args=(self._stopping,), name="jobs-maintenance", daemon=True
                )
                self._maintaining.start()
        finally:
            self._started.set()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are run and maintained, or will be once the database is available."""
        return not self._started.is_set() or (self._maintaining is not None and self._maintaining.is_alive())

    def stop(self, timeout_s: float = 5.0) -> None:
        """Hand back running jobs, and take no more. Call it from another thread than `start`, whose end it awaits."""
        self._stopping.set()
        self._worker.stop(timeout_s)
        self._started.wait()
        if self._workflows is None:
            return
        self._workflows.stop_retrying()
        if self._maintaining is not None:
            self._maintaining.join()
        self._end()
        _only_one.release()
        try:
            self._maintenance.sign_off([self._worker.worker_id])
        except SourceUnavailable:
            log.warning("this worker could not sign off; the others will notice its end")

    def _try_to_launch(self) -> None:
        """Prepare the database and launch DBOS; if that fails, log it and wait for RETRY_S."""
        try:
            self._lock = LivenessLock(self._options.locks, self._worker.worker_id)
            prepare(self._database)
            self._maintenance.heartbeat(self._worker.worker_id, self._options.max_jobs)
            self._launch()
            log.info("jobs are run here", worker_id=self._worker.worker_id, max_jobs=self._options.max_jobs)
        except Exception as error:
            is_foreseen = isinstance(error, SourceUnavailable)
            log.warning("jobs cannot be run yet; retrying", exc_info=not is_foreseen)
            self._end()
            self._stopping.wait(RETRY_S)

    def _end(self) -> None:
        """End DBOS in this process, so that another worker can use it."""
        from dbos import DBOS

        DBOS.destroy(destroy_registry=True)
        self._workflows = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _launch(self) -> None:
        """Start DBOS with the workflow of jobs, so that it polls the queue."""
        from dbos import DBOS
        from dbos._serialization import DBOSPortableJSON

        dbos = DBOS(
            config={
                "name": APPLICATION,
                "system_database_engine": self._database.engine,
                "application_version": VERSION,
                "executor_id": self._worker.worker_id,
                "serializer": DBOSPortableJSON,
                "log_level": "ERROR",
                "run_migrations": False,
                "use_listen_notify": not self._database.is_sqlite,
                "notification_listener_polling_interval_sec": 0.2,
                "scheduler_polling_interval_sec": 3600.0,
            }
        )

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
        def run(job_id: str) -> None:
            self._run(str(DBOS.workflow_id), job_id)

        DBOS.listen_queues([QUEUE])
        DBOS.launch()
        queue = DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._options.max_jobs,
            # Makes callers take turns, and is set anew for each poll. (A limit over all workers would make them wait
            # for one another at every poll.)
            partition_worker_concurrency=self._options.max_jobs,
            polling_interval_sec=self._options.poll_s,
            on_conflict="always_update",
        )
        patches.keep_own_limits(dbos, queue)
        self._waiting = patches.waiting_partitions(dbos, self._database)
        patches.choose_partitions(dbos, queue, self._next_partitions)
        self._workflows = Workflows(dbos, self._database, self._worker.worker_id)

    # ---- one job -----------------------------------------------------------------------------------------------

    def _run(self, workflow_id: str, job_id: str) -> None:
        """Run a job as a workflow. Raises _NotRecorded if the job is to run again, or has another run."""

        def must_yield(caller: str, worked_s: float) -> bool:
            if is_preempted := self._must_yield(caller, worked_s):
                self._preempted.add(workflow_id)
            return is_preempted

        try:
            end = self._worker.run(job_id, _durably, must_yield)
        except BaseException:
            self._preempted.discard(workflow_id)
            raise
        if end is not RunEnd.PREEMPTED:
            self._preempted.discard(workflow_id)
        if end is not RunEnd.SETTLED:
            raise _NotRecorded

    # ---- callers take turns ------------------------------------------------------------------------------------

    def _n_running(self, part: str) -> int:
        """Return how many jobs of a partition (see `queue.partition`) run here."""
        assert self._workflows is not None
        return self._workflows.n_active_of(part)

    def _n_free(self) -> int:
        assert self._workflows is not None
        return self._options.max_jobs - self._workflows.n_active()

    def _next_partitions(self) -> tuple[list[str], int]:
        """Return the partitions that are next at this poll, and how many jobs each of them may have here."""
        # The first poll may come before the launch has ended.
        n_free = 0 if self._workflows is None else self._n_free()
        return self._turns.next(self._waiting(), n_free) if n_free > 0 else ([], self._options.max_jobs)

    def _must_yield(self, caller: str, worked_s: float) -> bool:
        """Whether a job of a caller must yield its slot. worked_s: for how long its run has worked here."""
        if self._n_free() > 0:
            return False
        try:
            waiting = self._waiting()
        except sa.exc.SQLAlchemyError:  # then no other job can begin either
            return False
        n_yielding = len(self._preempted)
        return self._turns.must_yield(partition(caller), waiting, n_yielding=n_yielding, ran_s=worked_s)

    # ---- maintenance -------------------------------------------------------------------------------------------

    def _maintenance_loop(self, workflows: Workflows, own: OwnHeartbeat) -> MaintenanceLoop:
        recovery = Recovery(
            workflows,
            self._maintenance,
            self._worker.worker_id,
            own,
            max_jobs=self._options.max_jobs,
            worker_timeout_s=self._options.worker_timeout_s,
            locks=self._options.locks,
        )

        def requeue_preempted() -> None:
            """Put jobs that yielded back to their place among their caller's jobs, once their run is over."""
            for workflow_id in self._preempted - workflows.active():
                workflows.requeue(workflow_id)
                self._preempted.discard(workflow_id)

        heartbeat_s = self._options.worker_timeout_s / 4
        duties = [
            Duty(recovery.heartbeat, heartbeat_s),
            Duty(self._worker.drop_lost),
            Duty(requeue_preempted),
            Duty(recovery.repair, REPAIR_S),
        ]
        return MaintenanceLoop(duties, pause_s=min(WATCH_S, heartbeat_s))


def _durably(work: Callable[[], bool]) -> bool:
    """Run a step of the workflow, or return what an earlier run recorded. Errors are raised, and not recorded."""
    from dbos import DBOS

    def unrecorded() -> bool:
        try:
            return work()
        except Exception as error:
            raise _NotRecorded(error) from error

    try:
        result: Any = DBOS.run_step({"name": "chunk"}, unrecorded)
        return bool(result)
    except _NotRecorded as carrier:
        if carrier.error is None:
            raise
        raise carrier.error from carrier.error.__cause__
