"""A job: one recording to be transcribed in the background, and what has come of it.

A job is filed before its caller gets an answer, and from then on its row is the one truth about it: what runs jobs
(`worker.py`, driven by the store) may die, freeze or come twice. Three rules make that safe:

- A state changes only along TRANSITIONS, in one guarded write.
- Each run of a job has an id of its own. Whoever claims the job takes it over; what an earlier run still writes no
  longer matches, so a worker that was only frozen cannot overwrite its successor.
- The audio is worked through in chunks, each kept with its result before the next begins. A new run goes on after the
  last chunk that was kept.

A run that ends without a word (its worker died) counts as a crash. Crashes in a row, without one chunk kept in between,
mark a job that kills its workers: after MAX_CRASHES it is given up. A long job on a machine that is restarted every day
keeps chunks between restarts, and is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from typeless_grpc import errors
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Transcript
from typeless_grpc.speech.transcript import joined as joined_text
from typeless_grpc.text.finishing import with_renditions, without_words

MAX_CRASHES = 3


class State(Enum):
    """Where a job stands."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more."""
        return not TRANSITIONS[self]


# What may follow what. PROCESSING to PROCESSING is a run that takes over from one that ended without a word.
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
    """The states from which a job may become this one: what a guarded write demands."""
    return tuple(before for before, after in TRANSITIONS.items() if state in after)


class Priority(IntEnum):
    """Which of a caller's pending jobs starts first: the lowest number."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(frozen=True)
class Failure:
    """Why a job was given up: a class of `errors.py` by name, and what that error said."""

    kind: str
    reason: str
    message: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What is kept of an error; of one that nobody foresaw, nothing that it says."""
        if isinstance(error, errors.TypelessError):
            return cls(type(error).__name__, error.reason, error.message, error.retry_after_s)
        message = "Something went wrong in the server; its log has the rest under the job's id."
        return cls("EngineFailed", "INTERNAL", message)

    @property
    def error(self) -> errors.TypelessError:
        """The error again, of the class that it was; EngineFailed where this version does not know that one."""
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

    owner: who may see it. caller: whose turn it takes among the pending. uri: where the audio is, "" where its bytes
    come along. options_message: the options as they were sent, opaque here. fingerprint: of everything that was sent;
    two submissions with one request_id ("" for none) must agree in it. uploads_of: whose uploads it may use, None for
    everyone's.
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


@dataclass(frozen=True)
class Job:
    """A job as it stands. Times are Unix seconds, None until they happened.

    progress: in [0, 1]. attempt: runs begun. n_chunks, n_segments: kept so far. position: samples at 16 kHz that the
    kept chunks cover. language: settled by an earlier chunk, "" while it is still detected. processing_s, queue_s,
    n_windows: what the kept chunks took. version: grows with every change.
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
    """One stretch of a job's audio, done. Its transcript's times are from the start of the recording.

    index: 0, 1, 2, …; end: samples at 16 kHz from the start of the recording. is_last: the audio ends here. progress:
    of the whole job, in [0, 1]. language: settled for the chunks that follow, "" where it is not.
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


def joined(chunks: Sequence[Transcript], model: str = "") -> Transcript:
    """The transcript of a recording from those of its chunks, in order.

    Its language is that of most of the speech.
    """
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
    """The transcript of a whole job as its caller asked for it: with its file formats, without words nobody wants."""
    with_files = with_renditions(transcript, options.output_formats, words=options.word_timestamps)
    return with_files if options.word_timestamps else without_words(with_files)


@dataclass(frozen=True)
class Progressed:
    """What a watcher is told: the job, its transcript once it is COMPLETED, and segments from first_index on."""

    job: Job
    first_index: int
    segments: Sequence[Segment]
    transcript: Transcript | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """How often a job is tried again after a fault that can pass, and how long it waits before.

    max_attempts: failed runs in a row, without a chunk kept in between, after which it is given up; 1 or more. It is
    never given up for want of capacity, which is no fault of the job's.
    first_delay_s: before the second; each one after waits four times as long, at most max_delay_s.
    """

    max_attempts: int = 5
    first_delay_s: float = 2.0
    max_delay_s: float = 300.0

    def delay_s(self, n_failures: int, error: BaseException) -> float | None:
        """How long to wait after the nth failure in a row, 1 or more; None where the job is to be given up."""
        if not can_pass(error) or (n_failures >= self.max_attempts and not isinstance(error, errors.Overloaded)):
            return None
        delay_s = min(self.first_delay_s * 4.0 ** min(n_failures - 1, 32), self.max_delay_s)
        asked_s = error.retry_after_s if isinstance(error, errors.TypelessError) else None
        return max(delay_s, asked_s or 0.0)


# Faults of the request or of the audio: the same again, whenever it is tried.
_PERMANENT = (
    errors.InvalidInput,
    errors.NotFound,
    errors.PermissionDenied,
    errors.TooLarge,
    errors.WrongState,
    errors.NotImplementedHere,
)


def can_pass(error: BaseException) -> bool:
    """Whether the same work may succeed later."""
    return not isinstance(error, _PERMANENT)
