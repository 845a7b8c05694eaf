"""The `JobObserver` protocol: what a worker reports about its work. Methods run in its threads, and must not raise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from typeless_grpc.jobs.job import Chunk, Job
from typeless_grpc.jobs.store import Run


class JobObserver(Protocol):
    """Notified of the work of one worker."""

    def running(self, run: Run) -> AbstractContextManager[None]:
        """Return a context in which a run takes place, in one thread."""
        ...

    def decoding(self, run: Run, index: int) -> AbstractContextManager[None]:
        """Return a context in which the index-th chunk is decoded and stored, within that of its run."""
        ...

    def run_ended(self, outcome: str) -> None:
        """A run has ended.

        outcome: "completed", "failed" (for good), "retried" (the job waits for another run), "preempted" or "released"
        (the worker stops, or the run has lost its lease).
        """
        ...

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """A chunk was decoded and stored; called once for each chunk. audio_s: its length. started_s: Unix time."""
        ...

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """A job has ended as "completed" or "failed". job: its state when its last run began. end_s: Unix time."""
        ...


class NoJobObserver:
    """Ignores everything."""

    def running(self, run: Run) -> AbstractContextManager[None]:
        """See `JobObserver`."""
        return nullcontext()

    def decoding(self, run: Run, index: int) -> AbstractContextManager[None]:
        """See `JobObserver`."""
        return nullcontext()

    def run_ended(self, outcome: str) -> None:
        """See `JobObserver`."""

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """See `JobObserver`."""

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """See `JobObserver`."""


class JobObservers:
    """A `JobObserver` that notifies several."""

    def __init__(self, observers: Sequence[JobObserver]) -> None:
        self._observers = observers

    def running(self, run: Run) -> AbstractContextManager[None]:
        """See `JobObserver`."""
        return _all([observer.running(run) for observer in self._observers])

    def decoding(self, run: Run, index: int) -> AbstractContextManager[None]:
        """See `JobObserver`."""
        return _all([observer.decoding(run, index) for observer in self._observers])

    def run_ended(self, outcome: str) -> None:
        """See `JobObserver`."""
        for observer in self._observers:
            observer.run_ended(outcome)

    def chunk_stored(self, job: Job, chunk: Chunk, audio_s: float, started_s: float) -> None:
        """See `JobObserver`."""
        for observer in self._observers:
            observer.chunk_stored(job, chunk, audio_s, started_s)

    def job_ended(self, job: Job, state: str, end_s: float) -> None:
        """See `JobObserver`."""
        for observer in self._observers:
            observer.job_ended(job, state, end_s)


@contextmanager
def _all(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
