"""The requests of the unary calls. Both clients build them here; only those that take a path read a file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from typeless_grpc.client.options import Options, RawFormat
from typeless_grpc.pb.v1 import audio_pb2, jobs_pb2, transcription_pb2

# A recording: the path of a file, or its bytes.
AudioLike = str | os.PathLike[str] | bytes


def display_name(file: str | os.PathLike[str]) -> str:
    """Return a path as valid UTF-8, as messages need it: other bytes become `\\xe9`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def is_uri(audio: object) -> bool:
    """Whether audio names a recording that the server fetches: `upload://ID`, `https://…`."""
    return isinstance(audio, str) and "://" in audio


def transcribe_request(
    audio: AudioLike, options: Options, raw_format: RawFormat | None = None
) -> transcription_pb2.TranscribeRequest:
    """Return the request of `transcribe`. Raises OSError if audio names a file that cannot be read."""
    content = audio if isinstance(audio, bytes) else Path(audio).read_bytes()
    source = audio_pb2.AudioSource(content=content, format=raw_format.message() if raw_format else None)
    return transcription_pb2.TranscribeRequest(audio=source, options=options.message())


def batch_request(
    recordings: Sequence[AudioLike],
    options: Options,
    *,
    names: Sequence[str] | None = None,
    raw_format: RawFormat | None = None,
) -> transcription_pb2.BatchTranscribeRequest:
    """Return the request of `batch`. Raises OSError if one of the recordings names a file that cannot be read."""
    if names is None:
        names = ["" if isinstance(audio, bytes) else display_name(audio) for audio in recordings]
    items = [
        transcription_pb2.BatchItem(name=name, audio=transcribe_request(audio, options, raw_format).audio)
        for name, audio in zip(names, recordings, strict=True)
    ]
    return transcription_pb2.BatchTranscribeRequest(items=items, options=options.message())


def submit_request(
    audio: AudioLike,
    options: Options,
    raw_format: RawFormat | None,
    *,
    priority: str,
    labels: Mapping[str, str],
    request_id: str,
) -> jobs_pb2.SubmitJobRequest:
    """Return the request of `submit`. audio: a URI, or a recording to send inline.

    Raises ValueError for an unknown priority, OSError for a file that cannot be read.
    """
    source = audio_pb2.AudioSource(format=raw_format.message() if raw_format else None)
    if isinstance(audio, bytes):
        source.content = audio
    elif is_uri(audio):
        source.uri = str(audio)
    else:
        source.content = Path(audio).read_bytes()
    return jobs_pb2.SubmitJobRequest(
        audio=source,
        options=options.message(),
        priority=jobs_pb2.JobPriority.Value(f"JOB_PRIORITY_{priority.upper()}"),
        labels=labels,
        request_id=request_id or str(uuid.uuid4()),
    )


def list_request(
    *, page_size: int, page_token: str, states: Sequence[str], labels: Mapping[str, str] | None
) -> jobs_pb2.ListJobsRequest:
    """Return the request of one page of `list`. Raises ValueError for an unknown state."""
    return jobs_pb2.ListJobsRequest(
        page_size=page_size,
        page_token=page_token,
        states=[jobs_pb2.JobState.Value(f"JOB_STATE_{state.upper()}") for state in states],
        labels=labels or {},
    )
