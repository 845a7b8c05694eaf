"""What the worker of jobs reports about its work. Methods run in the worker's threads, and must not raise."""

from __future__ import annotations

from typing import Protocol

from typeless_grpc.jobs.job import Chunk, Job


class JobObserver(Protocol):
    """Notified of the work of one worker."""

    def run_ended(self, outcome: str) -> None:
        """A run has ended.

        outcome: "completed", "failed" (for good), "retried" (the job waits for another run), "preempted" or "released"
        (the worker stops, or the run has lost its lease).
        """
        ...

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """A chunk was decoded and stored, for the only time. audio_s: its length. started_s: Unix time."""
        ...

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """A job has ended as "completed" or "failed". job: as it was when its last run began. end_s: Unix time."""
        ...


class NoJobObserver:
    """Ignores everything."""

    def run_ended(self, outcome: str) -> None:
        """See `JobObserver`."""

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """See `JobObserver`."""

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """See `JobObserver`."""
