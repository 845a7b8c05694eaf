"""A job's life beside a list of its chunks: workers that die or freeze, retries, cancellation, deletion, retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.contract.conftest import FAULT, Stores, chunk
from tests.states.databases import Folder
from tests.states.machines import CountedMachine, check, finds
from typeless_grpc.errors import AlreadyExists, NotFound, WrongState
from typeless_grpc.jobs.job import CRASHED, MAX_CRASHES, Chunk, Failure, Job, State
from typeless_grpc.jobs.store import JobQuery, Run, RunLost
from typeless_grpc.sources.checked import CheckedSources, SourceOptions
from typeless_grpc.stores.database import jobs
from typeless_grpc.stores.job_table import JobStoreOptions, JobTable
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.stores.runs import SqlRunStore

N_EXAMPLES = 40
TTL_S = 4096.0
NUMBERS = st.integers(0, 5)  # of a job or a worker
WRITES = ["a chunk", "a chunk", "a chunk", "completed", "failed", "retried", "preempted"]
REQUESTS = st.sampled_from(["", "r1", "r2"])


@dataclass
class KnownJob:
    """The reference. run_id: of the run that has the lease. expire_s: when an ended job expires."""

    job: Job
    request: tuple[str, str]
    state: State = State.PENDING
    run_id: str = ""
    chunks: list[str] = field(default_factory=list)
    n_crashes: int = 0
    n_failures: int = 0
    n_runs: int = 0
    expire_s: float = float("inf")
    is_deleted: bool = False
    version: int = -1
    failure: Failure | None = None


@dataclass(eq=False)
class Worker:
    """A run, in a worker that may be slow, frozen, or a ghost of another one. n_chunks: those it knows of."""

    run: Run
    n_chunks: int


class Jobs(CountedMachine):
    """The jobs of one owner, and the workers that have run them."""

    def __init__(self, folder: Folder, stores: Stores) -> None:
        super().__init__()
        self.folder, self.stores, self.owner = folder, stores, folder.owner()
        self.known: list[KnownJob] = []
        self.begun: list[Worker] = []

    @property
    def now_s(self) -> float:
        return self.folder.database.clock.now_s()

    def is_there(self, known: KnownJob) -> bool:
        return not known.is_deleted and known.expire_s > self.now_s

    def end(self, known: KnownJob, state: State) -> None:
        known.state, known.run_id, known.expire_s = state, "", self.now_s + TTL_S

    @initialize()
    def begin(self) -> None:
        self.submit("", "f")
        self.claim(0)

    # ---- callers --------------------------------------------------------------------------------------------

    @rule(request_id=REQUESTS, fingerprint=st.sampled_from("fg"))
    def submit(self, request_id: str, fingerprint: str) -> None:
        earlier = [one for one in self.known if request_id and one.request[0] == request_id and self.is_there(one)]
        values = {"owner": self.owner, "caller": self.owner, "request_id": request_id, "fingerprint": fingerprint}
        try:
            job = self.stores.submit(content=b"\0\0" * 16, **values)
        except AlreadyExists:
            assert [one.request[1] for one in earlier] not in ([], [fingerprint])
            return
        if earlier:
            assert (job.job_id, earlier[0].request[1]) == (earlier[0].job.job_id, fingerprint)
            return
        assert job.job_id not in {one.job.job_id for one in self.known}
        self.known.append(KnownJob(job, (request_id, fingerprint)))

    @rule(n=NUMBERS)
    def look(self, n: int) -> None:
        known = self.known[n % len(self.known)]
        try:
            job = self.stores.jobs.get(known.job.job_id, self.owner)
        except NotFound:
            assert not self.is_there(known)
            return
        assert self.is_there(known)
        assert (job.state, job.n_chunks, job.attempt) == (known.state, len(known.chunks), known.n_runs)
        assert job.failure == known.failure
        kept = [] if known.state is State.CANCELLED else known.chunks
        assert self.stores.jobs.transcript(job).text == " ".join(kept)
        assert [one.text for one in self.stores.jobs.segments(job, 1)] == kept[1:]
        with pytest.raises(NotFound):
            self.stores.jobs.get(known.job.job_id, "another")

    @rule(n=NUMBERS)
    def cancel(self, n: int) -> None:
        known = self.known[n % len(self.known)]
        try:
            self.stores.jobs.cancel(known.job.job_id, self.owner)
        except NotFound:
            assert not self.is_there(known)
        else:
            assert self.is_there(known)
            if not known.state.is_final:
                self.end(known, State.CANCELLED)

    @rule(n=NUMBERS)
    def delete(self, n: int) -> None:
        known = self.known[n % len(self.known)]
        try:
            self.stores.jobs.delete(known.job.job_id, self.owner)
        except NotFound:
            assert not self.is_there(known)
            assert not known.is_deleted
        except WrongState:
            assert known.state is State.PROCESSING
        else:
            assert known.is_deleted or (self.is_there(known) and known.state is not State.PROCESSING)
            known.is_deleted = True

    # ---- workers --------------------------------------------------------------------------------------------

    @rule(n=NUMBERS)
    def claim(self, n: int) -> None:
        """A worker gets the job from the queue: its first one, or another, because the last one seems to be dead."""
        known = self.known[n % len(self.known)]
        run = self.stores.runs.claim(known.job.job_id, "w")
        can_run = not known.is_deleted and not known.state.is_final
        if can_run and known.state is State.PROCESSING:
            known.n_crashes += 1
            if known.n_crashes >= MAX_CRASHES:
                self.end(known, State.FAILED)
                known.failure, can_run = CRASHED, False
        assert (run is not None) is can_run
        if run is None:
            return
        known.state, known.run_id, known.n_runs = State.PROCESSING, run.run_id, known.n_runs + 1
        assert (run.job.n_chunks, run.n_failures) == (len(known.chunks), known.n_failures)
        assert [self.stores.runs.kept_chunk(run, index) for index in range(run.job.n_chunks + 1)] == [
            *(False for _ in known.chunks),
            None,
        ]
        self.begun.append(Worker(run, run.job.n_chunks))

    @rule(n=NUMBERS)
    def reassign(self, n: int) -> None:
        """Another worker gets the job, because this one is silent; it may wake up later."""
        self.claim(self.known.index(self.job_of(self.begun[n % len(self.begun)])))

    @rule(n=NUMBERS, what=st.sampled_from(WRITES))
    def write(self, n: int, what: str) -> None:
        worker = self.begun[n % len(self.begun)]
        runs, run = self.stores.runs, worker.run
        text = f"{run.run_id[:4]}-{worker.n_chunks}"
        known, has_lease = self.job_of(worker), self.job_of(worker).run_id == run.run_id
        try:
            match what:
                case "a chunk":
                    runs.keep_chunk(run, chunk(worker.n_chunks, text))
                case "completed":
                    runs.complete(run)
                case "failed":
                    runs.fail(run, FAULT)
                case "retried":
                    runs.retry(run, FAULT, 1.0)
                    assert self.stores.queue.queued[-1].job_id == run.job.job_id
                case "preempted":
                    runs.hand_back(run)
        except RunLost:
            assert not has_lease
            return
        assert has_lease
        match what:
            case "a chunk":
                known.chunks.append(text)
                known.n_crashes = known.n_failures = 0
                worker.n_chunks += 1
            case "completed":
                self.end(known, State.COMPLETED)
            case "failed":
                self.end(known, State.FAILED)
                known.failure = FAULT
            case "retried" | "preempted":
                known.state, known.run_id = State.PENDING, ""
                known.n_failures += what == "retried"

    def job_of(self, worker: Worker) -> KnownJob:
        (known,) = (one for one in self.known if one.job.job_id == worker.run.job.job_id)
        return known

    # ---- time -----------------------------------------------------------------------------------------------

    # Where the database's clock was set, time passes by a tenth faster or slower for what expires: two of the longer
    # waits are a time to live, and one is not.
    @rule(seconds=st.sampled_from([1.0, 0.6 * TTL_S]))
    def wait(self, seconds: float) -> None:
        self.folder.database.clock.advance(seconds)

    @rule(step_s=st.sampled_from([-1e6, 0.0, 1e6]))
    def set_the_databases_clock(self, step_s: float) -> None:
        self.folder.database.step_s = step_s

    @rule()
    def sweep(self) -> None:
        self.stores.maintenance.delete_expired()
        self.stores.maintenance.drop_audio()
        for known in self.known:
            names = {name for name, _ in self.stores.files.names(f"jobs/{known.job.job_id}")}
            assert ("audio" in names) is (self.is_there(known) and not known.state.is_final)
            assert self.is_there(known) or not names

    @rule()
    def compare(self) -> None:
        there = {one.job.job_id: one for one in self.known if self.is_there(one)}
        assert {job.job_id for job in self.stores.jobs.page(JobQuery(self.owner)).jobs} == there.keys()
        counts = self.stores.jobs.stats(self.owner).counts
        assert sum(counts.values()) == len(there)
        for job_id, version in self.stores.jobs.versions(list(there)).items():
            assert version >= there[job_id].version
            there[job_id].version = version
        leases = {one.run_id for one in self.known if one.state is State.PROCESSING and not one.is_deleted}
        runs = [worker.run for worker in self.begun]
        assert self.stores.runs.lost(runs) == {run.run_id for run in runs} - leases

    def teardown(self) -> None:
        self.folder.database.step_s = 0.0
        super().teardown()


class ForgetsFencing(SqlRunStore):
    def keep_chunk(self, run: Run, chunk: Chunk) -> None:
        with self._table.db.reading() as connection:
            newest = connection.execute(sa.select(jobs.c.run_id).where(jobs.c.job_id == run.job.job_id)).scalar()
        super().keep_chunk(replace(run, run_id=newest or run.run_id), chunk)


class CountsNoCrash(SqlRunStore):
    def claim(self, job_id: str, worker_id: str) -> Run | None:
        with self._table.db.writing() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(n_crashes=0))
        return super().claim(job_id, worker_id)


class FollowsAClockThatSteps(JobTable):
    def visible(self, owner: str | None) -> list[sa.ColumnElement[bool]]:
        kept = sa.or_(jobs.c.expire_s.is_(None), jobs.c.expire_s > self.db.now_s())
        return [kept] if owner is None else [kept, jobs.c.owner == owner]


class DeletesWhatRuns(SqlJobStore):
    def delete(self, job_id: str, owner: str | None) -> None:
        try:
            super().delete(job_id, owner)
        except WrongState:
            self.cancel(job_id, owner)
            super().delete(job_id, owner)


def machine(
    folder: Folder,
    *,
    jobs: type[SqlJobStore] = SqlJobStore,
    runs: type[SqlRunStore] = SqlRunStore,
    table: type[JobTable] = JobTable,
) -> Callable[[], Jobs]:
    stores = Stores.over(folder.database, folder.files)
    rows = table(folder.database, folder.files, stores.queue, JobStoreOptions(ttl_s=TTL_S))
    sources = CheckedSources(stores.uploads, SourceOptions())
    made = replace(stores, jobs=jobs(rows), runs=runs(rows, sources), maintenance=JobMaintenance(rows))
    return lambda: Jobs(folder, made)


def test_jobs_survive_their_workers(folder: Folder):
    check(machine(folder), N_EXAMPLES)


@pytest.mark.parametrize(
    "fault",
    [
        {"runs": ForgetsFencing},
        {"runs": CountsNoCrash},
        {"table": FollowsAClockThatSteps},
        {"jobs": DeletesWhatRuns},
    ],
    ids=["no fencing", "no count of crashes", "a clock that steps", "a running job is deleted"],
)
def test_a_planted_fault_of_jobs_is_found(folder: Folder, fault):
    finds(machine(folder, **fault), N_EXAMPLES)
