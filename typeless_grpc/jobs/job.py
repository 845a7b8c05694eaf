"""A job: one recording to be transcribed in the background, and its result so far.

A job is stored before its caller gets an answer. From then on only its row counts: the workers that run jobs
(`worker.py`, started by the store's queue) may die, freeze, or run a job twice. Three rules make that safe:

- A state changes only along TRANSITIONS, in one guarded write.
- Each run of a job has its own id, which is its lease. A run that claims the job takes the lease; later writes of an
  earlier run no longer match, so a worker that was only frozen cannot overwrite its successor.
- The audio is transcribed in chunks. The result of each is stored before the next begins, and a new run continues after
  the last stored chunk.

A run that ends without an outcome (its worker died) counts as a crash. Crashes in a row, with no chunk stored in
between, mark a poison job, which crashes its workers: after MAX_CRASHES it fails. A long job on a machine that is
restarted every day stores chunks between restarts, and does not fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from typeless_grpc import errors
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.speech.transcript import joined as joined_text
from typeless_grpc.text.finishing import with_renditions, without_words

MAX_CRASHES = 3


class State(Enum):
    """The state of a job."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: its state does not change any more."""
        return not TRANSITIONS[self]


# The states that may follow each state. PROCESSING follows itself when a run takes the lease of one that crashed.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.PROCESSING, State.CANCELLED}),
    State.PROCESSING: frozenset(
        {State.PROCESSING, State.PENDING, State.COMPLETED, State.FAILED, State.CANCELLED},
    ),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def states_before(state: State) -> tuple[State, ...]:
    """Return the states that this one may follow: the condition of a guarded write."""
    return tuple(before for before, after in TRANSITIONS.items() if state in after)


class Priority(IntEnum):
    """The order of a caller's pending jobs: the lowest number starts first."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the name of a class of `errors.py`, and the fields of that error."""

    kind: str
    reason: str
    message: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure for an error.

        The message of an unforeseen error is left out, because it may be private.
        """
        if isinstance(error, errors.TypelessError):
            return cls(type(error).__name__, error.reason, error.message, error.retry_after_s)
        message = "An unexpected error occurred in the server. Its log has the details under the job's id."
        return cls("EngineFailed", "INTERNAL", message)

    @property
    def error(self) -> errors.TypelessError:
        """Return the error, of its class, or EngineFailed if this version does not know the class."""
        found = getattr(errors, self.kind, None)
        is_known = isinstance(found, type) and issubclass(found, errors.TypelessError)
        family: type[errors.TypelessError] = found if is_known and found else errors.EngineFailed
        error = family.__new__(family)
        errors.TypelessError.__init__(error, self.message, reason=self.reason, retry_after_s=self.retry_after_s)
        return error


CRASHED = Failure(
    "EngineFailed",
    reason="JOB_CRASHED",
    message=f"The job stopped its worker {MAX_CRASHES} times in a row at the same place of the audio.",
)


@dataclass(frozen=True)
class NewJob:
    """A job as it is submitted.

    owner: the caller that may see it. caller: jobs of different callers take turns. uri: URI of the audio, "" if its
    bytes come with the request. options_message: the options as they were sent; this package does not read them.
    fingerprint: digest of the whole request; two requests with the same request_id ("" for none) must have the same
    one. uploads_of: owner of the uploads that the job may use, None for all owners. trace: headers that continue the
    trace of the submission; empty without one.
    """

    owner: str
    caller: str
    uri: str
    format: AudioFormat
    options: DecodeOptions
    options_message: bytes = b""
    priority: Priority = Priority.NORMAL
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    fingerprint: str = ""
    uploads_of: str | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A stored job. Times are Unix seconds, None until they happen.

    progress: in [0, 1]. attempt: number of runs. n_chunks, n_segments: stored so far. position: samples at 16 kHz in
    the stored chunks. language: detected in an earlier chunk, "" while it is unknown. processing_s, queue_s, n_windows:
    sums over the stored chunks. version: grows with every change.
    """

    job_id: str
    owner: str
    caller: str
    state: State
    uri: str
    format: AudioFormat
    options: DecodeOptions
    options_message: bytes
    priority: Priority
    labels: Mapping[str, str]
    create_s: float
    start_s: float | None
    end_s: float | None
    expire_s: float | None
    progress: float
    progress_message: str
    attempt: int
    failure: Failure | None
    audio_s: float | None
    n_chunks: int
    n_segments: int
    position: int
    language: str
    processing_s: float
    queue_s: float
    n_windows: int
    version: int


@dataclass(frozen=True)
class Chunk:
    """The result of one chunk of a job's audio. Times of its transcript count from the start of the recording.

    index: 0, 1, 2, …; end: samples at 16 kHz from the start of the recording. is_last: the audio ends here. progress:
    of the whole job, in [0, 1]. language: the language of the next chunks, "" if it is still to be detected.
    n_channels: number of channels that were transcribed separately.
    """

    index: int
    end: int
    is_last: bool
    transcript: Transcript
    progress: float = 0.0
    language: str = ""
    processing_s: float = 0.0
    queue_s: float = 0.0
    n_windows: int = 0
    n_channels: int = 1


def joined(chunks: Sequence[Transcript], model: str = "") -> Transcript:
    """Join the transcripts of a recording's chunks, in order. Its language is that of most of the speech."""
    tally = LanguageTally()
    for chunk in chunks:
        tally.add(chunk.language, chunk.language_probability, chunk.speech_s)
    language, probability = tally.main()
    return Transcript(
        segments=tuple(segment for chunk in chunks for segment in chunk.segments),
        suppressed=tuple(one for chunk in chunks for one in chunk.suppressed),
        language=language,
        language_probability=probability,
        audio_s=sum(chunk.audio_s for chunk in chunks),
        speech_s=sum(chunk.speech_s for chunk in chunks),
        model=next((chunk.model for chunk in chunks), model),
        raw_text=joined_text(chunk.raw_text for chunk in chunks),
    )


def shown(transcript: Transcript, options: DecodeOptions) -> Transcript:
    """Return a job's transcript as requested: with its file formats, and with words only if they were requested."""
    with_files = with_renditions(transcript, options.output_formats, words=options.word_timestamps)
    return with_files if options.word_timestamps else without_words(with_files)


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which delay, a job is retried after a transient fault.

    max_attempts: failed runs in a row, with no chunk stored in between, after which the job fails; 1 or more. Lack of
    capacity never makes a job fail. first_delay_s: delay before the first retry; each later one is four times as long,
    at most max_delay_s.
    """

    max_attempts: int = 5
    first_delay_s: float = 2.0
    max_delay_s: float = 300.0

    def delay_s(self, n_failures: int, error: BaseException) -> float | None:
        """Return the delay after the n_failures-th failure in a row, from 1; None if the job fails."""
        if not is_transient(error) or (n_failures >= self.max_attempts and not isinstance(error, errors.Overloaded)):
            return None
        delay_s = min(self.first_delay_s * 4.0 ** min(n_failures - 1, 32), self.max_delay_s)
        requested_s = error.retry_after_s if isinstance(error, errors.TypelessError) else None
        return max(delay_s, requested_s or 0.0)


# Faults of the request or of the audio: a retry would have the same result.
_PERMANENT = (
    errors.InvalidInput,
    errors.NotFound,
    errors.PermissionDenied,
    errors.TooLarge,
    errors.WrongState,
    errors.NotImplementedHere,
)


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed."""
    return not isinstance(error, _PERMANENT)
