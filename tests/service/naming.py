"""Which fields of which requests name something that may belong to a caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.service.access import methods


class Named(Enum):
    """What a field of a request names."""

    JOB = "job"
    UPLOAD = "upload"
    SOURCE = "source"
    SESSION = "session"
    REQUEST = "request"
    LABELS = "labels"
    JOBS_PAGE = "page of jobs"
    KEY = "key"
    KEYS_PAGE = "page of keys"
    USAGE_PAGE = "page of usage"


NAMING: Mapping[str, Named] = {
    "AudioSource.uri": Named.SOURCE,
    "SubmitJobRequest.request_id": Named.REQUEST,
    "SubmitJobRequest.labels": Named.LABELS,
    "ListJobsRequest.labels": Named.LABELS,
    "ListJobsRequest.page_token": Named.JOBS_PAGE,
    "GetJobRequest.job_id": Named.JOB,
    "CancelJobRequest.job_id": Named.JOB,
    "DeleteJobRequest.job_id": Named.JOB,
    "WatchJobRequest.job_id": Named.JOB,
    "UploadHeader.upload_id": Named.UPLOAD,
    "GetUploadRequest.upload_id": Named.UPLOAD,
    "StreamConfig.resume_session_id": Named.SESSION,
    "RevokeApiKeyRequest.key_id": Named.KEY,
    "UpdateRateLimitRequest.key_id": Named.KEY,
    "ListUsageRequest.key_id": Named.KEY,
    "ListUsageRequest.page_token": Named.USAGE_PAGE,
    "ListApiKeysRequest.page_token": Named.KEYS_PAGE,
    # Google's
    **{f"{kind}OperationRequest.name": Named.JOB for kind in ("Get", "Cancel", "Delete", "Wait")},
    "ListOperationsRequest.page_token": Named.JOBS_PAGE,
    "RecognitionAudio.uri": Named.SOURCE,
    "RecognizeRequest.uri": Named.SOURCE,
    "BatchRecognizeFileMetadata.uri": Named.SOURCE,
}
# These name nothing that belongs to a caller.
PLAIN = frozenset(
    {
        *(f"AudioFormat.{name}" for name in ("sample_rate_hertz", "channel_count")),
        "AudioSource.content",
        "BatchItem.name",
        "CreateApiKeyRequest.display_name",
        "DecodingOptions.beam_size",
        "HealthCheckRequest.service",
        "ListApiKeysRequest.page_size",
        "ListJobsRequest.page_size",
        *(f"ListUsageRequest.{name}" for name in ("first_day", "last_day", "page_size")),
        "LoadModelRequest.name",
        "PostProcessing.replacements",
        *(f"RateLimit.{name}" for name in ("group", "amount", "period_seconds", "burst")),
        *(f"ExtensionRequest.{name}" for name in ("containing_type", "extension_number")),
        *(
            f"ServerReflectionRequest.{name}"
            for name in (
                "host",
                "file_by_filename",
                "file_containing_symbol",
                "all_extension_numbers_of_type",
                "list_services",
            )
        ),
        "StreamConfig.resume_after_sequence",
        "StreamTranscribeRequest.audio",
        *(f"TranscriptionOptions.{name}" for name in ("model", "language", "allowed_languages", "prompt", "hotwords")),
        "UnloadModelRequest.name",
        "UploadAudioRequest.chunk",
        "UploadFinish.sha256",
        *(f"UploadHeader.{name}" for name in ("offset", "filename")),
        "WatchJobRequest.next_segment_index",
        *(f"ListOperationsRequest.{name}" for name in ("name", "filter", "page_size")),
        # Riva's
        *(f"EndpointingConfig.{name}" for name in ("start_history", "stop_history", "stop_history_eou")),
        *(f"RecognitionConfig.{name}" for name in ("sample_rate_hertz", "language_code", "max_alternatives")),
        *(f"RecognitionConfig.{name}" for name in ("audio_channel_count", "model", "custom_configuration")),
        "RecognizeRequest.audio",
        "RequestId.value",  # of the caller's own response
        "RivaSpeechRecognitionConfigRequest.model_name",
        "SpeakerDiarizationConfig.max_speaker_count",
        "SpeechContext.phrases",
        *(f"StreamingRecognizeRequest.{name}" for name in ("audio_content", "runtime_config")),
    }
)
_NUMBERS_AND_TEXT = {
    getattr(FieldDescriptor, f"TYPE_{name}")
    for name in ("STRING", "BYTES", "INT32", "INT64", "UINT32", "UINT64", "FIXED32", "FIXED64", "SFIXED64", "SINT64")
}


def leaves(message: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each field of a message that could name something, and its name in the tables."""
    for field in message.fields:
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            if not inner.full_name.startswith(("google.protobuf.", "google.rpc.")):
                yield from leaves(inner, (*path, field.name))
        elif inner is not None or field.type in _NUMBERS_AND_TEXT:
            name = f"{message.name}.{field.name}"
            # Of Google's hundreds of fields, only those that we use could name something.
            if name in NAMING or not message.full_name.startswith("google.cloud."):
                yield (*path, field.name), name


NAMES = [
    (method, path, NAMING[name])
    for method, described in methods().items()
    for path, name in leaves(described.input_type)
    if name in NAMING
]
