"""Converts messages of jobs and uploads to domain values and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from typeless_grpc.access.principal import Principal
from typeless_grpc.engine.interface import Chunking
from typeless_grpc.errors import InvalidInput
from typeless_grpc.jobs.job import Failure, Job, NewJob, Priority, State
from typeless_grpc.jobs.store import JobQuery, QueueStats, Upload
from typeless_grpc.pb.v1 import failure_pb2, jobs_pb2, transcription_pb2, uploads_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.telemetry.context import trace_headers

MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 128
MAX_REQUEST_ID_CHARACTERS = 256
MAX_FILENAME_CHARACTERS = 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000

STATES = {
    State.PENDING: jobs_pb2.JOB_STATE_PENDING,
    State.PROCESSING: jobs_pb2.JOB_STATE_PROCESSING,
    State.COMPLETED: jobs_pb2.JOB_STATE_COMPLETED,
    State.FAILED: jobs_pb2.JOB_STATE_FAILED,
    State.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
}
STATES_BACK = {message: state for state, message in STATES.items()}
PRIORITIES = {
    jobs_pb2.JOB_PRIORITY_UNSPECIFIED: Priority.NORMAL,
    jobs_pb2.JOB_PRIORITY_LOW: Priority.LOW,
    jobs_pb2.JOB_PRIORITY_NORMAL: Priority.NORMAL,
    jobs_pb2.JOB_PRIORITY_HIGH: Priority.HIGH,
}
PRIORITIES_BACK = {
    Priority.LOW: jobs_pb2.JOB_PRIORITY_LOW,
    Priority.NORMAL: jobs_pb2.JOB_PRIORITY_NORMAL,
    Priority.HIGH: jobs_pb2.JOB_PRIORITY_HIGH,
}


# ---- requests -------------------------------------------------------------------------------------------------


def reach(principal: Principal) -> str | None:
    """Return the owner whose jobs and uploads a caller may use; None for an admin, who may use all."""
    return None if principal.is_admin else principal.owner


def new_job(request: jobs_pb2.SubmitJobRequest, principal: Principal) -> NewJob:
    """Convert a submission, and check all but its audio. Its uri is "" if the audio comes with the request."""
    audio_format = convert.audio_format(request.audio.format, "audio.format").validated("audio")
    source = convert.audio_source(request.audio, "audio")
    priority = PRIORITIES.get(request.priority)
    if priority is None:
        raise InvalidInput("priority", f"{request.priority} is no known priority")
    return NewJob(
        owner=principal.owner,
        caller=principal.id,
        uri=source if isinstance(source, str) else "",
        format=audio_format,
        options=convert.decode_options(request.options, "options"),
        options_message=request.options.SerializeToString(deterministic=True),
        priority=priority,
        labels=labels(request.labels, "labels"),
        request_id=text(request.request_id, MAX_REQUEST_ID_CHARACTERS, "request_id"),
        uploads_of=reach(principal),
        trace=trace_headers.get(),
    )


def fingerprint(request: jobs_pb2.SubmitJobRequest, sha256: bytes = b"") -> str:
    """Return a digest that is the same for two submissions if they request the same. It reads all audio of the message.

    sha256: of the upload that it names, if known: the same recording may have been uploaded again.
    """
    if sha256:
        named, request = request, jobs_pb2.SubmitJobRequest()
        request.CopyFrom(named)
        request.audio.uri = f"sha256:{sha256.hex()}"
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def labels(message: Mapping[str, str], field: str) -> dict[str, str]:
    """Convert the labels of a job or of a filter."""
    if len(message) > MAX_LABELS:
        raise InvalidInput(field, f"{len(message)} labels; at most {MAX_LABELS} are taken")
    for key, value in message.items():
        if not key:
            raise InvalidInput(field, "a key is empty")
        text(key, MAX_LABEL_CHARACTERS, field)
        text(value, MAX_LABEL_CHARACTERS, f"{field}[{key}]")
    return dict(message)


def text(value: str, n_characters: int, field: str) -> str:
    """Check a short text of the caller, which is stored and returned."""
    if len(value) > n_characters:
        raise InvalidInput(field, f"{len(value)} characters; at most {n_characters} are taken")
    if "\0" in value:
        raise InvalidInput(field, "holds a NUL character")
    return value


def required_id(value: str, field: str) -> str:
    """Check an id, which must not be empty."""
    if not value:
        raise InvalidInput(field, "is empty")
    return text(value, MAX_REQUEST_ID_CHARACTERS, field)


def query(request: jobs_pb2.ListJobsRequest, principal: Principal) -> JobQuery:
    """Convert the filters and page of a list."""
    if not 0 <= request.page_size <= MAX_PAGE_SIZE:
        raise InvalidInput("page_size", f"{request.page_size} is not in 0 to {MAX_PAGE_SIZE}")
    states = []
    for index, state in enumerate(request.states):
        if state not in STATES_BACK:
            raise InvalidInput(f"states[{index}]", f"{state} is no state a job can be in")
        states.append(STATES_BACK[state])
    return JobQuery(
        owner=reach(principal),
        page_size=request.page_size or DEFAULT_PAGE_SIZE,
        page_token=request.page_token,
        states=states,
        labels=labels(request.labels, "labels"),
    )


# ---- responses ------------------------------------------------------------------------------------------------


def job(value: Job, transcript: Transcript | None, code: int) -> jobs_pb2.Job:
    """Convert a job. transcript: None to leave it out. code: status code of its failure, 0 if it has none."""
    options = transcription_pb2.TranscriptionOptions.FromString(value.options_message)
    message = jobs_pb2.Job(
        job_id=value.job_id,
        state=STATES[value.state],
        progress=value.progress,
        progress_message=value.progress_message,
        create_time=timestamp(value.create_s),
        priority=PRIORITIES_BACK[value.priority],
        labels=value.labels,
        attempt=value.attempt,
        options=options,
    )
    for field, unix_s in (("start_time", value.start_s), ("end_time", value.end_s), ("expire_time", value.expire_s)):
        if unix_s is not None:
            getattr(message, field).CopyFrom(timestamp(unix_s))
    if value.audio_s is not None:
        message.audio_duration.CopyFrom(convert.duration(value.audio_s))
    if transcript is not None:
        message.transcript.CopyFrom(convert.transcript(transcript))
    if value.failure is not None:
        message.failure.CopyFrom(failure(value.failure, code))
    if value.state is State.COMPLETED:
        message.stats.CopyFrom(stats(value))
    return message


def failure(value: Failure, code: int) -> failure_pb2.Failure:
    """Convert the failure of a job."""
    message = failure_pb2.Failure(code=code, reason=value.reason, message=value.message)
    if value.retry_after_s is not None:
        message.retry_delay.CopyFrom(convert.duration(value.retry_after_s))
    return message


def stats(value: Job) -> transcription_pb2.ProcessingStats:
    """Convert the sums over the job's chunks, whichever workers they ran on."""
    return transcription_pb2.ProcessingStats(
        processing_time=convert.duration(value.processing_s),
        queue_time=convert.duration(value.queue_s),
        realtime_factor=(value.audio_s or 0.0) / value.processing_s if value.processing_s > 0 else 0.0,
        chunking=convert.STRATEGIES[_strategy(value)],
        chunk_count=value.n_windows,
    )


def _strategy(value: Job) -> Chunking:
    """Return how the recording was cut: into chunks as by HYBRID, and within them as requested."""
    if value.options.chunking is not Chunking.AUTO:
        return value.options.chunking
    return Chunking.WHOLE if value.n_chunks <= 1 and value.n_windows <= 1 else Chunking.HYBRID


def queue_stats(value: QueueStats) -> jobs_pb2.GetQueueStatsResponse:
    """Convert the state of the queue."""
    message = jobs_pb2.GetQueueStatsResponse(
        total=sum(value.counts.values()),
        max_concurrent_jobs=value.max_concurrent_jobs,
        workers=value.n_workers,
    )
    for state in State:
        setattr(message, state.value, value.counts.get(state, 0))
    if value.oldest_pending_age_s is not None:
        message.oldest_pending_age.CopyFrom(convert.duration(value.oldest_pending_age_s))
    return message


def upload(value: Upload) -> uploads_pb2.Upload:
    """Convert an upload."""
    return uploads_pb2.Upload(
        upload_id=value.upload_id,
        uri=value.uri,
        size_bytes=value.size_bytes,
        complete=value.is_complete,
        expire_time=timestamp(value.expire_s),
    )


def timestamp(unix_s: float) -> Any:
    """Convert Unix time to a Timestamp, to the microsecond."""
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(unix_s, UTC))
    return message
