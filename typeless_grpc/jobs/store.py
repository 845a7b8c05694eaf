"""The protocols of the stores of jobs and uploads; `stores/` implements them.

All calls block, so callers on an event loop use a thread. Every call may raise SourceUnavailable, with `retry_after_s`,
while the database or the storage is unavailable or full. A call reads and changes only the jobs and uploads of its
owner; those of other owners are NotFound. None is an admin, who may use all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from typeless_grpc.jobs.job import Chunk, Failure, Job, NewJob, State
from typeless_grpc.speech.transcript import Segment, Transcript


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to list, newest first.

    states, labels: empty for all. page_token: that of the page before, "" first.
    """

    owner: str | None
    page_size: int = 100
    page_token: str = ""
    states: Collection[State] = ()
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class JobPage:
    """A page of jobs, at most page_size. next_page_token: "" on the last page."""

    jobs: Sequence[Job]
    next_page_token: str


@dataclass(frozen=True)
class QueueStats:
    """The queue now: number of jobs by state, and the live workers."""

    counts: Mapping[State, int]
    n_workers: int
    max_concurrent_jobs: int
    oldest_pending_age_s: float | None


@dataclass(frozen=True)
class Run:
    """A run's lease of a job.

    job: its state when the run began. n_failures: failed runs in a row before it. waited_s: time since the job was
    submitted or put back into the queue. trace: that of the submission, see `NewJob`.
    """

    run_id: str
    job: Job
    n_failures: int
    waited_s: float = 0.0
    trace: Mapping[str, str] = field(default_factory=dict)


class RunLost(Exception):
    """The run has lost its lease: the job was cancelled or deleted, or another run has claimed it."""


class AudioReservation(Protocol):
    """Room in an owner's storage quota for audio that is being fetched."""

    @property
    def reservation_id(self) -> str:
        """The id of the reservation in the store."""
        ...

    @property
    def n_bytes(self) -> int:
        """The bytes that are reserved."""
        ...

    def grow_to(self, n_bytes: int) -> None:
        """Reserve n_bytes in all, before they are written.

        Raises RateLimited at the owner's quota, and SourceUnavailable if the disk is almost full.
        """
        ...


class JobStore(Protocol):
    """The jobs, for callers."""

    def submit(self, new: NewJob, content: bytes | BinaryIO | None, reserved: AudioReservation | None = None) -> Job:
        """Store a job and its audio (content, or what new.uri names); returns once both are on disk.

        A request_id that was used before returns the job of that request. reserved: from `reserve`; the content counts
        in its place. Raises AlreadyExists if the earlier request was a different one, NotFound if the upload does not
        exist, WrongState if it is not complete, RateLimited if the caller has too many pending jobs or its owner too
        much audio here.
        """
        ...

    def reserve(self, owner: str) -> AbstractContextManager[AudioReservation]:
        """Reserve room for the audio of one job while this is open.

        At the end, room that `submit` has not used is released.
        """
        ...

    def made_by(self, new: NewJob) -> Job | None:
        """Return the job of an earlier request with new.request_id; None if there is none.

        Raises AlreadyExists if that request was a different one.
        """
        ...

    def get(self, job_id: str, owner: str | None) -> Job:
        """Return a job. Raises NotFound."""
        ...

    def page(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first. Raises InvalidInput for an unknown page token."""
        ...

    def cancel(self, job_id: str, owner: str | None) -> Job:
        """Cancel a job unless it has ended; return it. Raises NotFound."""
        ...

    def delete(self, job_id: str, owner: str | None) -> None:
        """Delete a job and all its data; do nothing if it was deleted within the last day.

        Raises NotFound, and WrongState while it is PROCESSING.
        """
        ...

    def stats(self, owner: str | None = None) -> QueueStats:
        """Return the number of the owner's jobs by state, of all jobs for None; the workers are the same for all."""
        ...

    def versions(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """Return the versions of the jobs that exist; cheap, so that it may be called often."""
        ...

    def transcript(self, job: Job) -> Transcript:
        """Return the transcript of all stored chunks."""
        ...

    def segments(self, job: Job, first_index: int) -> Sequence[Segment]:
        """Return the final segments from an index on."""
        ...


class RunStore(Protocol):
    """The jobs, for workers. All writes of a run raise RunLost once it has lost its lease."""

    def is_quarantined(self, job_id: str) -> bool:
        """Whether the job's last run ended without an outcome, so that the next may crash its worker."""
        ...

    def claim(self, job_id: str, worker_id: str) -> Run | None:
        """Begin a run; None if there is nothing to do: the job was deleted, has ended, or has crashed too often."""
        ...

    def open_audio(self, job: Job) -> BinaryIO:
        """Open the job's audio, which the caller closes. Raises NotFound, or as AudioSources.open does."""
        ...

    def kept_chunk(self, run: Run, index: int) -> bool | None:
        """Return whether a chunk, by its index, is the last of the audio; None if it is not stored yet."""
        ...

    def keep_chunk(self, run: Run, chunk: Chunk) -> None:
        """Store a chunk's result, which is final, and advance the job's progress."""
        ...

    def complete(self, run: Run) -> None:
        """Set the job to COMPLETED; all its chunks are stored."""
        ...

    def fail(self, run: Run, failure: Failure) -> None:
        """Set the job to FAILED."""
        ...

    def retry(self, run: Run, failure: Failure, delay_s: float) -> None:
        """Set the job to PENDING, and queue it again after a delay."""
        ...

    def hand_back(self, run: Run) -> None:
        """Set the job to PENDING for any worker. This counts neither as a crash nor as a failure."""
        ...

    def lost(self, runs: Collection[Run]) -> Collection[str]:
        """Return the ids of the runs that have lost their lease."""
        ...


UPLOAD_SCHEME = "upload://"


@dataclass(frozen=True)
class Upload:
    """A stored recording, complete or partial. expire_s: Unix time of its deletion."""

    upload_id: str
    owner: str
    size_bytes: int
    is_complete: bool
    expire_s: float

    @property
    def uri(self) -> str:
        """The URI of the upload in requests."""
        return f"{UPLOAD_SCHEME}{self.upload_id}"


class UploadStore(Protocol):
    """Stores recordings that are too large for one message."""

    def create(self, owner: str, filename: str) -> Upload:
        """Create an upload. Raises RateLimited if the owner has too many unfinished ones."""
        ...

    def get(self, upload_id: str, owner: str | None) -> Upload:
        """Return an upload. Raises NotFound."""
        ...

    def append(self, upload: Upload, data: Sequence[bytes]) -> Upload:
        """Store the next bytes, at least one.

        Raises WrongState if another call has appended to it meanwhile, and InvalidInput at the limit.
        """
        ...

    def digest(self, upload: Upload) -> bytes:
        """Return the SHA-256 of the stored bytes, which are read in parts."""
        ...

    def complete(self, upload: Upload, sha256: bytes = b"") -> Upload:
        """Set the upload to complete. sha256: of its bytes, b"" if unknown. Raises WrongState as append does."""
        ...

    def sha256(self, upload_id: str, owner: str | None) -> bytes:
        """Return the SHA-256 of a completed upload; b"" if it is unknown or there is no such upload."""
        ...

    def open(self, upload_id: str, owner: str | None) -> BinaryIO:
        """Open a complete upload; the caller closes it. Raises NotFound, and WrongState if it is unfinished."""
        ...
