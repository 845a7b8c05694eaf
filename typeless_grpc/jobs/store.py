"""Where jobs and uploads are kept, as this package and the servicers see it; `stores/` has the real ones.

Everything here blocks, so callers on an event loop use a thread. Every call may raise SourceUnavailable, with
`retry_after_s`, while the database or the storage cannot be reached or is full. An owner is whose jobs or uploads a
call may touch, None for an admin, who may touch all; what belongs to another owner is NotFound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from typeless_grpc.jobs.job import Chunk, Failure, Job, NewJob, State
from typeless_grpc.speech.transcript import Segment, Transcript


@dataclass(frozen=True)
class JobQuery:
    """Which jobs, newest first. states, labels: empty is all. page_token: of the page before, "" is the first."""

    owner: str | None
    page_size: int = 100
    page_token: str = ""
    states: Collection[State] = ()
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class JobPage:
    """jobs: at most page_size. next_page_token: "" on the last page."""

    jobs: Sequence[Job]
    next_page_token: str


@dataclass(frozen=True)
class QueueStats:
    """The queue at one moment: jobs by state, and the workers that are alive."""

    counts: Mapping[State, int]
    n_workers: int
    max_concurrent_jobs: int
    oldest_pending_age_s: float | None


@dataclass(frozen=True)
class Run:
    """One run's hold on a job. job: as it was when the run began. n_failures: failed runs in a row before it."""

    run_id: str
    job: Job
    n_failures: int


class RunLost(Exception):
    """The job is no longer this run's: it was cancelled or deleted, or another run has taken it over."""


class AudioReservation(Protocol):
    """Room in an owner's storage quota for audio that is being fetched."""

    @property
    def reservation_id(self) -> str:
        """What the store knows it by."""
        ...

    @property
    def n_bytes(self) -> int:
        """How much is reserved."""
        ...

    def grow_to(self, n_bytes: int) -> None:
        """Reserve so many bytes in all, before they are written.

        Raises RateLimited at the owner's quota, and SourceUnavailable if the disk is almost full.
        """
        ...


class JobStore(Protocol):
    """The jobs, as their callers use them."""

    def submit(self, new: NewJob, content: bytes | BinaryIO | None, reserved: AudioReservation | None = None) -> Job:
        """Store a job and its audio (content, or what new.uri names); returns once both are on disk.

        A request_id that was used before returns the job of that request. reserved: from `reserve`; the content counts
        in its place. Raises AlreadyExists if the earlier request was a different one, NotFound if the upload does not
        exist, WrongState if it is not complete, RateLimited if the caller has too many pending jobs or its owner too
        much audio here.
        """
        ...

    def reserve(self, owner: str) -> AbstractContextManager[AudioReservation]:
        """Begin to reserve room for the audio of one job. What `submit` has not used is released at the end."""
        ...

    def made_by(self, new: NewJob) -> Job | None:
        """The job that an earlier submission with new.request_id made; None where there is none.

        Raises AlreadyExists if that was for something else.
        """
        ...

    def get(self, job_id: str, owner: str | None) -> Job:
        """The job as it stands. Raises NotFound."""
        ...

    def page(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises InvalidInput for a page token that is none of ours."""
        ...

    def cancel(self, job_id: str, owner: str | None) -> Job:
        """End a job that has not ended; the job as it then stands. Raises NotFound."""
        ...

    def delete(self, job_id: str, owner: str | None) -> None:
        """Delete a job and all it holds; nothing happens where that was done before, within the last day.

        Raises NotFound, and WrongState while it is PROCESSING.
        """
        ...

    def stats(self, owner: str | None = None) -> QueueStats:
        """The queue: the owner's jobs counted, everyone's for None; the workers are the same for all."""
        ...

    def versions(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """The versions of the jobs that exist: cheap, to be asked often."""
        ...

    def transcript(self, job: Job) -> Transcript:
        """What the chunks that are kept say, as one."""
        ...

    def segments(self, job: Job, first_index: int) -> Sequence[Segment]:
        """The segments that are final, from an index on."""
        ...


class RunStore(Protocol):
    """What a worker asks of jobs. All writes of a run raise RunLost once the job is no longer its own."""

    def is_quarantined(self, job_id: str) -> bool:
        """Whether the job's last run ended without an outcome, so that the next may crash its worker."""
        ...

    def claim(self, job_id: str, worker_id: str) -> Run | None:
        """Begin a run; None where there is nothing to do: the job is gone, has ended, or has crashed too often."""
        ...

    def open_audio(self, job: Job) -> BinaryIO:
        """The job's audio, to be closed by the caller. Raises NotFound, or as AudioSources.open does."""
        ...

    def kept_chunk(self, run: Run, index: int) -> bool | None:
        """Whether the chunk is the last of the audio; None where it is not kept yet."""
        ...

    def keep_chunk(self, run: Run, chunk: Chunk) -> None:
        """Keep a chunk's result: it is final, and the job's progress moves on."""
        ...

    def complete(self, run: Run) -> None:
        """All chunks are kept: the job is COMPLETED."""
        ...

    def fail(self, run: Run, failure: Failure) -> None:
        """Give the job up."""
        ...

    def retry(self, run: Run, failure: Failure, delay_s: float) -> None:
        """Back to PENDING, to be run again after a delay."""
        ...

    def hand_back(self, run: Run) -> None:
        """Back to PENDING, for any worker: this one stops. Counts neither as a crash nor as a failure."""
        ...

    def lost(self, runs: Collection[Run]) -> Collection[str]:
        """The ids of those runs whose job is no longer theirs."""
        ...


UPLOAD_SCHEME = "upload://"


@dataclass(frozen=True)
class Upload:
    """A recording kept here, whole or in part. expire_s: Unix time of its deletion."""

    upload_id: str
    owner: str
    size_bytes: int
    is_complete: bool
    expire_s: float

    @property
    def uri(self) -> str:
        """What a request names it by."""
        return f"{UPLOAD_SCHEME}{self.upload_id}"


class UploadStore(Protocol):
    """Recordings too large for one message."""

    def create(self, owner: str, filename: str) -> Upload:
        """Open a new upload. Raises RateLimited if the owner has too many unfinished ones."""
        ...

    def get(self, upload_id: str, owner: str | None) -> Upload:
        """The upload as it stands. Raises NotFound."""
        ...

    def append(self, upload: Upload, data: Sequence[bytes]) -> Upload:
        """Keep the next bytes, in pieces.

        Raises WrongState if another call has moved it on meanwhile, and InvalidInput at the limit.
        """
        ...

    def digest(self, upload: Upload) -> bytes:
        """SHA-256 of what is kept, read piece by piece."""
        ...

    def complete(self, upload: Upload, sha256: bytes = b"") -> Upload:
        """All bytes are there. sha256: of them, b"" where it is not known. Raises WrongState as append does."""
        ...

    def sha256(self, upload_id: str, owner: str | None) -> bytes:
        """What the upload was completed with; b"" where that is not known, or there is no such upload."""
        ...

    def open(self, upload_id: str, owner: str | None) -> BinaryIO:
        """A complete upload's bytes, to be closed by the caller. Raises NotFound, and WrongState for one unfinished."""
        ...
