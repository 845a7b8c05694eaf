"""Metrics of jobs: of those in the database, and of this process's worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from typeless_grpc.jobs.job import Chunk, Job, State
from typeless_grpc.jobs.observer import NoJobObserver
from typeless_grpc.jobs.store import QueueStats
from typeless_grpc.telemetry.call_metrics import JOB, AudioMetrics
from typeless_grpc.telemetry.gauges import add_gauge, add_gauges

DURATIONS_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10_800.0, 43_200.0, 86_400.0)
RUN_OUTCOMES = ("completed", "failed", "retried", "preempted", "released")


@dataclass(frozen=True)
class StoredJobs:
    """The content of the database and the storage, of all servers that share them.

    n_bytes: bytes of uploads and of the audio of jobs. free_ratio: the free share of the storage's disk, None for an
    object store.
    """

    queue: QueueStats
    n_bytes: int
    free_ratio: float | None = None


class JobMetrics(NoJobObserver):
    """A `JobObserver` that counts, and gauges of what is stored."""

    def __init__(self, registry: CollectorRegistry, audio: AudioMetrics) -> None:
        self._registry, self._audio = registry, audio
        self.runs = Counter(
            "typeless_job_runs_total", "Runs of jobs by this worker, by outcome.", ("outcome",), registry=registry
        )
        self.durations = Histogram(
            "typeless_job_duration_seconds",
            "From the submission of a job to its end, by state; observed by the worker that ended it.",
            ("state",),
            buckets=DURATIONS_S,
            registry=registry,
        )
        for outcome in RUN_OUTCOMES:
            self.runs.labels(outcome)
        for state in (State.COMPLETED, State.FAILED):
            self.durations.labels(state.value)

    def watch_store(self, read: Callable[[], StoredJobs | None], is_up: Callable[[], bool]) -> None:
        """Show the store. read: returns its recent content, None if unknown. is_up: returns whether it answers."""

        def show(name: str, help: str, value: Callable[[StoredJobs], float | None]) -> None:
            def known() -> Mapping[tuple[str, ...], float]:
                found = value(stored) if (stored := read()) else None
                return {} if found is None else {(): found}

            add_gauges(self._registry, name, help, (), known)

        def by_state() -> Mapping[tuple[str, ...], float]:
            stored = read()
            return {(state.value,): stored.queue.counts.get(state, 0) for state in State} if stored else {}

        help = "Jobs in the database, by state. Servers that share the database show the same."
        add_gauges(self._registry, "typeless_jobs", help, ("state",), by_state)
        show(
            "typeless_oldest_pending_job_seconds",
            "Age of the oldest pending job; 0 if there is none.",
            lambda stored: stored.queue.oldest_pending_age_s or 0.0,
        )
        show("typeless_workers", "Workers with a recent heartbeat.", lambda stored: stored.queue.n_workers)
        show(
            "typeless_job_slots",
            "Jobs that the live workers run at once.",
            lambda stored: stored.queue.max_concurrent_jobs,
        )
        show(
            "typeless_stored_bytes",
            "Bytes of uploads and of the audio of jobs in the storage.",
            lambda stored: stored.n_bytes,
        )
        show(
            "typeless_storage_free_ratio",
            "Free share of the storage's disk, from 0 to 1; absent for an object store.",
            lambda stored: stored.free_ratio,
        )
        add_gauge(self._registry, "typeless_database_up", "0 while the database of jobs is unavailable, else 1.", is_up)

    def run_ended(self, outcome: str) -> None:
        """See `JobObserver`."""
        self.runs.labels(outcome).inc()

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """See `JobObserver`."""
        self._audio.seconds.labels(JOB).inc(audio_s)
        if audio_s:
            self._audio.factor.labels(JOB).observe(max(0.0, chunk.processing_s - chunk.queue_s) / audio_s)

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """See `JobObserver`."""
        self.durations.labels(state).observe(max(0.0, end_s - job.create_s))


class StoreReader:
    """Reads the content of the database from time to time, so that Prometheus never waits for it."""

    def __init__(self, read: Callable[[], StoredJobs], max_age_s: float = 60.0) -> None:
        """read: blocks, and may raise. max_age_s: time without an answer after which the content is unknown."""
        self._read, self._max_age_s = read, max_age_s
        self._stored: StoredJobs | None = None
        self._read_s = 0.0

    def refresh(self) -> None:
        """Read once. Raises what `read` raises."""
        self._stored, self._read_s = self._read(), time.monotonic()

    def latest(self) -> StoredJobs | None:
        """Return the content that was read last, None if it is too old."""
        return self._stored if time.monotonic() - self._read_s <= self._max_age_s else None
