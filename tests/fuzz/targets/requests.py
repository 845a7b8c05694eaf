"""Requests to domain values: every mapping of every servicer, over messages as bytes and as fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from tests.fuzz.inputs import Source, field_exists
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.errors import InvalidInput
from typeless_grpc.jobs.job import Job, State
from typeless_grpc.pb.v1 import admin_pb2, jobs_pb2, transcription_pb2
from typeless_grpc.servicers import convert, convert_jobs
from typeless_grpc.servicers.admin import parse_limit
from typeless_grpc.servicers.recordings import Recording
from typeless_grpc.servicers.stream_messages import (
    StreamDefaults,
    UpdateMessages,
    check_resume,
    effective_config,
    effective_options,
    stream_config,
    stream_request,
)
from typeless_grpc.streaming.requests import Update

MAX_BYTES = 4096
CALLER = Principal("key:one", "key:one")
_OF_NEW = ("owner", "caller", "uri", "format", "options", "options_message", "priority", "labels")
_STORED: dict[str, Any] = {
    **dict.fromkeys(("start_s", "end_s", "expire_s", "failure", "audio_s")),
    **dict.fromkeys(("attempt", "n_chunks", "n_segments", "position", "n_windows", "version"), 0),
    **dict.fromkeys(("create_s", "progress", "processing_s", "queue_s"), 0.0),
    **dict.fromkeys(("job_id", "progress_message", "language"), ""),
    "state": State.PENDING,
}
DEFAULTS = StreamDefaults("base")


def transcribe(message: Any) -> None:
    Recording.of(message.audio, message.options, "audio", "options")


def submit(message: Any) -> None:
    new = convert_jobs.new_job(message, CALLER)
    assert convert_jobs.fingerprint(message) == convert_jobs.fingerprint(message)
    assert len(new.labels) <= convert_jobs.MAX_LABELS
    stored = Job(**_STORED | {name: getattr(new, name) for name in _OF_NEW})
    shown = convert_jobs.job(stored, None, 0)
    assert shown.options == message.options
    assert dict(shown.labels) == dict(message.labels)
    again = convert.decode_options(shown.options, "options")
    assert again == new.options, "the options that a job shows mean something else"


def listed(message: Any) -> None:
    query = convert_jobs.query(message, CALLER)
    assert query.owner == CALLER.owner
    assert 0 < query.page_size <= convert_jobs.MAX_PAGE_SIZE


def stream(message: Any) -> None:
    """What `started` says is in force, and means the same when it is sent."""
    config = stream_config(message, DEFAULTS)
    shown = effective_config(config, DEFAULTS)
    again = stream_config(shown, DEFAULTS)
    assert again.format == config.format
    assert again.is_file == config.is_file
    assert effective_config(again, DEFAULTS) == shown


def resumed(message: Any) -> None:
    check_resume(message)


def following(message: Any) -> None:
    for is_file in (False, True):
        request = stream_request(message, DEFAULTS, is_file=is_file)
        if isinstance(request, Update):
            codec = UpdateMessages(DEFAULTS)
            assert codec.decode(codec.encode(request)) == request
            shown = effective_options(message.update, request.options, DEFAULTS, is_file=is_file)
            assert convert.decode_options(shown, "update").language == request.options.language


def limited(message: Any) -> None:
    limit = parse_limit(message.rate_limit, message.key_id, "rate_limit")
    assert limit.group in Group
    assert limit.quota.burst > 0


MAPPINGS: Mapping[Callable[[Any], None], type[Message]] = {
    transcribe: transcription_pb2.TranscribeRequest,
    submit: jobs_pb2.SubmitJobRequest,
    listed: jobs_pb2.ListJobsRequest,
    stream: transcription_pb2.StreamConfig,
    resumed: transcription_pb2.StreamConfig,
    following: transcription_pb2.StreamTranscribeRequest,
    limited: admin_pb2.UpdateRateLimitRequest,
}
# Where a mapping says the path of its message in a larger one.
PREFIXES = ("config.", "update.")


def seeds() -> Iterator[bytes]:
    for index in range(len(MAPPINGS)):
        for start in range(3):
            yield bytes([index, 1]) + bytes((start * 7 + i * 13) % 256 for i in range(300))
        yield bytes([index, 0]) + b"\x0a\x04\x0a\x02\x00\x00"


def one(data: bytes) -> None:
    source = Source(data)
    mapping = source.chosen(list(MAPPINGS))
    message = MAPPINGS[mapping]()
    if not source.read_into(message):
        return
    before = message.SerializeToString(deterministic=True)
    try:
        mapping(message)
    except InvalidInput as error:
        check(error, message)
    assert message.SerializeToString(deterministic=True) == before, "a mapping changed its request"


def check(error: InvalidInput, message: Message) -> None:
    """Every violation names a field of the request."""
    assert error.violations
    for violation in error.violations:
        assert violation.why
        paths = [violation.field, *(violation.field.removeprefix(prefix) for prefix in PREFIXES)]
        is_named = any(field_exists(message.DESCRIPTOR, path) for path in paths)
        assert is_named or violation.field in ("request", "options"), violation
    assert len(error.message) < 20_000
