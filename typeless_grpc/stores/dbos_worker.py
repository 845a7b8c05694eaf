"""Workers by DBOS: it hands pending jobs to this process, one thread each, and records each step.

What its free part leaves open is done by a keeper, a thread of ours: it says that this worker is alive, stops runs
whose job was taken away, and puts jobs back into the queue that made way or whose worker is dead. A worker is dead once
it has not been heard of for `worker_timeout_s`; on the same machine at once, because it holds a lock on a file as long
as it lives.

Private things of DBOS 3.4 are used, which is why its version is pinned and the fault tests kill, freeze and starve
workers: `_recover_pending_workflows` and `reenqueue_for_recovery` (take over the jobs of the dead),
`_active_workflows_set` (what runs here), `_retry_connection_errors` (off once we stop), and two queries of every poll,
which are replaced: that for a queue's row, which would be one limit for all workers, and that for who waits, which is
asked only if somebody does, and answered by those who are next (`jobs/turns.py`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import sqlalchemy as sa

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.jobs.turns import Turns
from typeless_grpc.jobs.worker import MadeWay, Worker
from typeless_grpc.stores import dbos_queue
from typeless_grpc.stores.database import Database, jobs
from typeless_grpc.stores.upkeep import JobUpkeep
from typeless_grpc.telemetry.logs import get_logger

if TYPE_CHECKING:
    from dbos import DBOS

log = get_logger(__name__)

# How often runs are checked for a job that was taken away: a cancelled one must stop within two seconds.
WATCH_S = 0.5
# Jobs that should be in the queue and are not are looked for this often, once they have not changed for as long.
REPAIR_S = 30.0
RETRY_S = 2.0

# DBOS is one for each process.
_only_one = threading.Lock()


@dataclass(frozen=True)
class DbosWorkerOptions:
    """max_jobs: at once, above 0. poll_s: how often the queue is looked at. worker_timeout_s: when a silent worker is
    taken for dead. locks: a directory for the signs of life on this machine."""

    max_jobs: int
    poll_s: float
    worker_timeout_s: float
    locks: Path


def new_worker_id() -> str:
    """An id for this start of this process; whoever starts again is somebody else."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


class SignOfLife:
    """A locked file: the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, directory: Path, worker_id: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / worker_id
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Show that this process no longer works."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    @staticmethod
    def is_dead(directory: Path, worker_id: str) -> bool:
        """Whether the worker was one of this machine and has ended; False where that cannot be known."""
        try:
            file: IO[str] = (directory / worker_id).open("r")
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return False
            return True


class Beats:
    """When this worker last said that it lives, and so whether it may judge others by their silence.

    Where it could not say so itself for a while, since the database was away or the machine slept, the others may not
    have been able to either. They are given one timeout to be heard of again: else the first one back would take over
    what all others still do, and each of those jobs would seem to have crashed its worker.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._last_s: float | None = None
        self._judges_from_s = clock()

    def note(self) -> None:
        """It was said."""
        now_s = self._clock()
        # Beats come four times in a timeout.
        if self._last_s is not None and now_s - self._last_s > self._timeout_s / 2:
            self._judges_from_s = now_s + self._timeout_s
        self._last_s = now_s

    @property
    def can_judge(self) -> bool:
        """Whether the silence of others means that they are dead."""
        return self._clock() >= self._judges_from_s


class Heartbeats:
    """How long each worker has been silent, by this machine's own clock.

    What a heartbeat says does not matter, only that it is another one than before: the clock that wrote it may have
    been set since. A worker that is new here has a timeout from now to be heard of.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._seen: dict[str, tuple[float, float]] = {}

    def silent(self, heartbeats: Mapping[str, float]) -> set[str]:
        """Those of whom nothing new was heard for a timeout. To be asked several times in one."""
        now_s = self._clock()
        unheard = (None, now_s)
        self._seen = {
            one: self._seen[one] if self._seen.get(one, unheard)[0] == beat else (beat, now_s)
            for one, beat in heartbeats.items()
        }
        return {one for one, (_, since_s) in self._seen.items() if now_s - since_s >= self._timeout_s}


class DbosWorker:
    """Runs jobs in this process, from `start` to `stop`. One at a time in a process."""

    def __init__(self, database: Database, upkeep: JobUpkeep, worker: Worker, options: DbosWorkerOptions) -> None:
        self._database, self._upkeep, self._worker, self._options = database, upkeep, worker, options
        self._stopping, self._started = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="jobs-keeper", daemon=True)
        self._sign: SignOfLife | None = None
        self._dbos: DBOS | None = None
        self._idle_here: set[str] = set()
        self._making_way: set[str] = set()
        self._waiting: Callable[[], list[str]] = list
        self._turns = Turns(options.max_jobs, self._n_running)
        self._beats = Beats(options.worker_timeout_s)
        self._heartbeats = Heartbeats(options.worker_timeout_s)

    def start(self) -> None:
        """Begin to take jobs; blocks for a second or more.

        Waits as long as the database cannot be reached, or another worker runs in this process. Once `stop` is called
        it returns without having begun.
        """
        self._beats.note()  # so that a long wait for the database counts as silence, as it does for the others
        try:
            while not _only_one.acquire(timeout=0.1):
                if self._stopping.is_set():
                    return
            while not self._stopping.is_set() and self._dbos is None:
                self._try_to_begin()
            if self._dbos is None:
                _only_one.release()
            else:
                self._keeper.start()
        finally:
            self._started.set()

    @property
    def is_alive(self) -> bool:
        """Whether its keeper runs, or will once the database can be reached."""
        return not self._started.is_set() or self._keeper.is_alive()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Hand back what runs, and take no more; called from another thread than `start`, whose end it waits for."""
        self._stopping.set()
        self._worker.stop(timeout_s)
        self._started.wait()
        if self._dbos is None:
            return
        # Of a database that does not answer, DBOS waits for the return in threads that the process would wait for.
        self._dbos._sys_db._retry_connection_errors = False
        self._keeper.join()
        self._end()
        _only_one.release()
        try:
            self._upkeep.sign_off([self._worker.worker_id])
        except SourceUnavailable:
            log.warning("this worker could not sign off; others will notice")

    def _try_to_begin(self) -> None:
        try:
            self._sign = SignOfLife(self._options.locks, self._worker.worker_id)
            dbos_queue.prepare(self._database)
            self._upkeep.beat(self._worker.worker_id, self._options.max_jobs)
            self._dbos = self._launched()
            log.info("jobs are run here", worker_id=self._worker.worker_id, max_jobs=self._options.max_jobs)
        except Exception as error:
            is_foreseen = isinstance(error, SourceUnavailable)
            log.warning("jobs cannot be run yet; trying again", exc_info=not is_foreseen)
            self._end()
            self._stopping.wait(RETRY_S)

    def _end(self) -> None:
        from dbos import DBOS

        DBOS.destroy(destroy_registry=True)
        self._dbos = None
        if self._sign is not None:
            self._sign.close()
            self._sign = None

    def _launched(self) -> DBOS:
        from dbos import DBOS
        from dbos._serialization import DBOSPortableJSON

        dbos = DBOS(
            config={
                "name": dbos_queue.APPLICATION,
                "system_database_engine": self._database.engine,
                "application_version": dbos_queue.VERSION,
                "executor_id": self._worker.worker_id,
                "serializer": DBOSPortableJSON,
                "log_level": "ERROR",
                "run_migrations": False,
                "use_listen_notify": not self._database.is_sqlite,
                "notification_listener_polling_interval_sec": 0.2,
                "scheduler_polling_interval_sec": 3600.0,
            }
        )

        @DBOS.workflow(name=dbos_queue.WORKFLOW, max_recovery_attempts=None)
        def run(job_id: str) -> None:
            workflow_id = str(DBOS.workflow_id)

            def is_over(caller: str, ran_s: float) -> bool:
                if must_make_way := self._must_make_way(caller, ran_s):
                    self._making_way.add(workflow_id)
                return must_make_way

            try:
                self._worker.run(job_id, lambda work: DBOS.run_step({"name": "chunk"}, work), is_over)
            except MadeWay:
                raise
            except BaseException:
                self._making_way.discard(workflow_id)
                raise

        DBOS.listen_queues([dbos_queue.QUEUE])
        DBOS.launch()
        queue = DBOS.register_queue(
            dbos_queue.QUEUE,
            worker_concurrency=self._options.max_jobs,
            # Makes callers take turns, and is set anew for each poll. (A limit over all workers would make them wait
            # for one another at every poll.)
            partition_worker_concurrency=self._options.max_jobs,
            polling_interval_sec=self._options.poll_s,
            on_conflict="always_update",
        )
        _read_once(dbos, queue)
        self._waiting = _waiting(dbos, self._database)
        self._take_turns(dbos, queue)
        return dbos

    # ---- callers take turns ------------------------------------------------------------------------------------

    def _n_running(self, partition: str) -> int:
        assert self._dbos is not None
        return self._dbos._active_workflows_set.count_for_partition(dbos_queue.QUEUE, partition)

    def _n_free(self) -> int:
        assert self._dbos is not None
        return self._options.max_jobs - self._dbos._active_workflows_set.count_for_queue(dbos_queue.QUEUE)

    def _take_turns(self, dbos: DBOS, queue: Any) -> None:
        """Let each poll see only the callers that are next, each with as many places as it may have then."""

        def get_queue_partitions(name: str) -> list[str]:
            if self._dbos is None:  # the first poll may come before we know of it
                return []
            n_free = self._n_free()
            if n_free <= 0:
                return []
            chosen, most = self._turns.next(self._waiting(), n_free)
            queue._partition_worker_concurrency = most
            return chosen

        dbos._sys_db.get_queue_partitions = get_queue_partitions  # type: ignore[method-assign, assignment]

    def _must_make_way(self, caller: str, ran_s: float) -> bool:
        if self._n_free() > 0:
            return False
        try:
            waiting = self._waiting()
        except sa.exc.SQLAlchemyError:  # then nobody else can begin either
            return False
        mine, n_making_way = dbos_queue.partition(caller), len(self._making_way)
        return self._turns.must_make_way(mine, waiting, n_making_way=n_making_way, ran_s=ran_s)

    def _queue_what_made_way(self) -> None:
        """Put back what has made way, once its run is over: as if it had never left its place in its caller's line."""
        assert self._dbos is not None
        for workflow_id in self._making_way - set(self._dbos._active_workflows_set.activeList()):
            self._dbos._sys_db.reenqueue_for_recovery(workflow_id, [self._worker.worker_id], dbos_queue.QUEUE)
            self._making_way.discard(workflow_id)

    # ---- the keeper --------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        beat_s = self._options.worker_timeout_s / 4
        beat = _Every(beat_s, self._beat)
        repair = _Every(REPAIR_S, self._repair)
        watch = _Every(0.0, self._worker.drop_lost)
        put_back = _Every(0.0, self._queue_what_made_way)
        while True:
            for duty in (beat, watch, put_back, repair):
                if self._stopping.is_set():
                    return
                try:
                    duty.do_if_due()
                except SourceUnavailable as error:
                    log.warning("the store of jobs cannot be reached", reason=error.reason)
                except Exception:
                    log.exception("unforeseen error in the keeper of jobs")
            self._stopping.wait(min(WATCH_S, beat_s))

    def _beat(self) -> None:
        self._upkeep.beat(self._worker.worker_id, self._options.max_jobs)
        self._beats.note()
        self._take_over()
        self._take_up_again()

    def _take_over(self) -> None:
        """Put the jobs of dead workers back into the queue. Others may do the same at once: it happens once."""
        assert self._dbos is not None
        executors = self._executors()  # before who is known: a worker says that it lives before it takes anything
        known = self._upkeep.workers()
        locks = self._options.locks
        dead = {one for one in known if SignOfLife.is_dead(locks, one)}
        silent = self._heartbeats.silent(known)
        if self._beats.can_judge:
            dead |= silent
        dead |= executors - known.keys()
        dead.discard(self._worker.worker_id)
        if not dead:
            return
        self._dbos._recover_pending_workflows(sorted(dead))
        self._upkeep.sign_off(dead)
        for one in dead:
            (locks / one).unlink(missing_ok=True)
        log.info("jobs of dead workers go on", workers=sorted(dead))

    def _take_up_again(self) -> None:
        """Put back what is filed as running here and does not: its run ended while the database could not be written.

        Only what was so at the beat before too, because DBOS files a job a moment before it runs.
        """
        assert self._dbos is not None
        active = set(self._dbos._active_workflows_set.activeList())
        idle = self._pending(self._worker.worker_id) - active
        for workflow_id in idle & self._idle_here:
            self._dbos._sys_db.reenqueue_for_recovery(workflow_id, [self._worker.worker_id], dbos_queue.QUEUE)
        self._idle_here = idle - self._idle_here

    def _repair(self) -> None:
        """Queue jobs again that wait for a run and are not in the queue: an outcome that should not have been."""
        table = self._workflows()
        queued = sa.exists().where(
            table.c.workflow_uuid == jobs.c.workflow_id, table.c.status.in_(["ENQUEUED", "DELAYED", "PENDING"])
        )
        if n_repaired := self._upkeep.queue_again(queued, REPAIR_S):
            log.warning("jobs that had left the queue were put back", n_jobs=n_repaired)

    def _executors(self) -> set[str]:
        table = self._workflows()
        statement = (
            sa.select(table.c.executor_id)
            .distinct()
            .where(table.c.status == "PENDING", table.c.queue_name == dbos_queue.QUEUE)
        )
        with self._database.reading() as connection:
            return {one for one in connection.execute(statement).scalars() if one}

    def _pending(self, worker_id: str) -> set[str]:
        table = self._workflows()
        statement = sa.select(table.c.workflow_uuid).where(
            table.c.status == "PENDING", table.c.queue_name == dbos_queue.QUEUE, table.c.executor_id == worker_id
        )
        with self._database.reading() as connection:
            return set(connection.execute(statement).scalars())

    def _workflows(self) -> sa.TableClause:
        columns: list[Any] = [sa.column(name) for name in ("workflow_uuid", "status", "queue_name", "executor_id")]
        return sa.table("workflow_status", *columns, schema=None if self._database.is_sqlite else "dbos")


class _Every:
    """Something to be done at intervals."""

    def __init__(self, interval_s: float, duty: Callable[[], None]) -> None:
        self._interval_s, self._duty = interval_s, duty
        self._due_s = time.monotonic()

    def do_if_due(self) -> None:
        """Do it now, unless that was not long ago."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._interval_s
            self._duty()


def _read_once(dbos: DBOS, queue: Any) -> None:
    """Let this process keep its own limits, and spare a query at every poll."""
    sys_db = dbos._sys_db
    read = sys_db.get_queue

    def get_queue(name: str, **kwargs: Any) -> Any:
        return queue if name == queue.name else read(name, **kwargs)

    sys_db.get_queue = get_queue  # type: ignore[method-assign]


def _waiting(dbos: DBOS, database: Database) -> Callable[[], list[str]]:
    """Asks whose jobs wait.

    Where none do, as at most polls, that costs a third of DBOS's own query: twenty in a second are a good part of an
    idle core.
    """
    find = dbos._sys_db.get_queue_partitions
    table = "workflow_status" if database.is_sqlite else "dbos.workflow_status"
    # The second condition follows from the first: spelled out, it lets SQLite use the index on what waits or runs.
    waiting = (
        f"SELECT 1 FROM {table} WHERE queue_name = '{dbos_queue.QUEUE}' AND status = 'ENQUEUED'"
        " AND status IN ('ENQUEUED', 'PENDING') LIMIT 1"
    )

    def ask() -> list[str]:
        with database.engine.connect() as connection:
            if connection.exec_driver_sql(waiting).first() is None:
                return []
        return find(dbos_queue.QUEUE)

    return ask
