"""The settings that can be reloaded, and what a probe sees before and after."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from tests.harness import AUDIO, pcm, request
from tests.identity_provider import bearer
from tests.service.access import ADMIN, KEYS, USER
from tests.service.reload_probes import (
    AS_ADMIN,
    AS_USER,
    BATCH,
    CONFIG,
    GOOGLE,
    INFO,
    JOBS,
    REFLECTION,
    RIVA,
    STREAM,
    TRANSCRIBE,
    Probe,
    audio_kept,
    by_uri,
    called,
    created,
    drained,
    forwarded,
    idle_stream,
    interim_interval_s,
    job_attempts,
    job_chunks,
    job_kept_s,
    job_retried,
    job_state,
    logged,
    masked,
    model_of_google,
    model_of_riva,
    pending,
    resumed,
    slow_request,
    slow_requests,
    stalled,
    stream_audio,
    two_held_open,
    two_streams,
    upload_kept_s,
    upload_opened,
    uploads,
)
from tests.service.streams import config
from tests.service.test_jobs import COMPLETED, FAILED
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers.google.messages import V1
from typeless_grpc.servicers.riva import messages

DAY_S = 86_400  # of tokens: they are made when the tests are collected, and the whole suite takes minutes
TOKENS = {"jwt_issuer": "https://id.example", "jwt_audience": "typeless", "jwt_jwks_url": "{jwks}"}
LIMITED = {"rate_limit_enabled": True}
SHORT_RETRIES = {"job_retry_delay_s": 0.01, "job_poll_s": 0.05}
# before, after: settings. old, new: what the probe returns with them, or a predicate of it. given: settings throughout.
# n_failures: first calls of the engine that fail.
Row = namedtuple("Row", "before after probe old new given n_failures", defaults=[{}, 0])
ANY = object()  # the old value takes too long to see
LONG = transcription_pb2.BatchTranscribeRequest(items=[{"audio": request().audio}] * 2)


def counted(name: str, probe: Probe, **given: Any) -> Row:
    """A limit of calls: three calls are made."""
    codes = [["OK"] * n + ["RESOURCE_EXHAUSTED"] * (3 - n) for n in (1, 2)]
    return Row({name: "1/day"}, {name: "2/day"}, probe, *codes, LIMITED | given)


ONE = request()
OF_GOOGLE = V1.message("RecognizeRequest", audio={"content": (AUDIO / "en_short.wav").read_bytes()})
OF_RIVA = messages.RecognizeRequest(config={"sample_rate_hertz": 16_000}, audio=pcm())
ONE_BATCH = transcription_pb2.BatchTranscribeRequest(items=[{"audio": ONE.audio}])
BLOCKED = "RESOURCE_EXHAUSTED"


ROWS: dict[str, Row] = {
    "trusted_proxies": Row(
        {"trusted_proxies": ""},
        {"trusted_proxies": "127.0.0.1"},
        forwarded,
        ["OK", BLOCKED],
        ["OK", "OK"],
        LIMITED | {"rate_limit_config": "1/day"},
    ),
    "drain_timeout_s": Row({"drain_timeout_s": 60}, {"drain_timeout_s": 0}, drained, ANY, lambda s: s < 20),
    "engine_stall_s": Row({"engine_stall_s": 60}, {"engine_stall_s": 1}, stalled, 1, 2),
    "profanity_file": Row({"profanity_file": None}, {"profanity_file": "{words}"}, masked, "a banana", "a b*****"),
    "log_text": Row({"log_text": False}, {"log_text": True}, logged, [None], ["a banana"]),
    # keys and tokens
    "require_auth": Row(
        {"require_auth": False},
        {"require_auth": True},
        called(TRANSCRIBE, message=ONE),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS,
    ),
    "api_keys": Row(
        {"api_keys": "another-key-1"},
        {"api_keys": f"another-key-1,{USER}"},
        called(TRANSCRIBE, AS_USER, message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS,
    ),
    "admin_keys": Row(
        {"admin_keys": "another-key-2"},
        {"admin_keys": ADMIN},
        called(CONFIG, AS_ADMIN),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS,
    ),
    "open_services": Row(
        {"open_services": "server"},
        {"open_services": "health"},
        called(INFO),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS | {"require_auth": True},
    ),
    "max_api_keys": Row({"max_api_keys": 2}, {"max_api_keys": 10}, created, BLOCKED, "OK", KEYS),
    "jwt_issuer": Row(
        {"jwt_issuer": "https://other.example"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_audience": Row(
        {"jwt_audience": "other"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_jwks_url": Row(
        {"jwt_jwks_url": "http://127.0.0.1:1/keys"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAVAILABLE"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_algorithms": Row(
        {"jwt_algorithms": "ES256"},
        {"jwt_algorithms": "RS256"},
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_roles_claim": Row(
        {"jwt_roles_claim": "roles"},
        {"jwt_roles_claim": "groups"},
        called(CONFIG, bearer(DAY_S, groups=["admin"])),
        ["PERMISSION_DENIED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_user_role": Row(
        {"jwt_user_role": ""},
        {"jwt_user_role": "speech"},
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS | TOKENS,
    ),
    "jwt_admin_role": Row(
        {"jwt_admin_role": "admin"},
        {"jwt_admin_role": "boss"},
        called(CONFIG, bearer(DAY_S, roles=["boss"])),
        ["PERMISSION_DENIED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    # rates
    "rate_limit_transcribe": counted("rate_limit_transcribe", called(TRANSCRIBE, n=3, message=ONE)),
    "rate_limit_long": counted("rate_limit_long", called(TRANSCRIBE, n=3, message=ONE), long_audio_s=0.5),
    "rate_limit_batch": counted("rate_limit_batch", called(BATCH, n=3, message=ONE_BATCH)),
    "rate_limit_stream": counted("rate_limit_stream", called(STREAM, n=3, message=config())),
    "rate_limit_jobs": counted("rate_limit_jobs", called(JOBS, n=3), max_concurrent_jobs=0),
    "rate_limit_config": counted("rate_limit_config", called(INFO, n=3)),
    "rate_limit_health": counted("rate_limit_health", called(REFLECTION, n=3)),
    "rate_limit_riva": counted("rate_limit_riva", called(RIVA, n=3, message=OF_RIVA)),
    "rate_limit_google": counted("rate_limit_google", called(GOOGLE, n=3, message=OF_GOOGLE)),
    "rate_limit_audio": counted("rate_limit_audio", called(TRANSCRIBE, n=3, message=ONE)),
    "rate_limit_wrong_keys": Row(
        {"rate_limit_wrong_keys": "5/day"},
        {"rate_limit_wrong_keys": "1/day"},
        called(INFO, ("x-api-key", "wrong"), n=2),
        ["UNAUTHENTICATED"] * 2,
        [BLOCKED] * 2,
        LIMITED | KEYS,
    ),
    "rate_limit_anonymous_percent": Row(
        {"rate_limit_anonymous_percent": 50},
        {"rate_limit_anonymous_percent": 25},
        called(TRANSCRIBE, n=3, message=ONE),
        ["OK", "OK", BLOCKED],
        ["OK", BLOCKED, BLOCKED],
        LIMITED | KEYS | {"rate_limit_transcribe": "4/day"},
    ),
    "long_audio_s": Row(
        {"long_audio_s": 300},
        {"long_audio_s": 0.5},
        called(TRANSCRIBE, n=2, message=ONE),
        ["OK", "OK"],
        ["OK", BLOCKED],
        LIMITED | {"rate_limit_long": "1/day"},
    ),
    "max_calls_per_caller": Row(
        {"max_calls_per_caller": 1},
        {"max_calls_per_caller": 2},
        two_held_open,
        ["held", BLOCKED],
        ["held"] * 2,
        LIMITED,
    ),
    # Riva's clients
    "riva_models": Row({"riva_models": ""}, {"riva_models": "parakeet=tiny"}, model_of_riva, "", "tiny"),
    "riva_unknown_models": Row(
        {"riva_unknown_models": "default"}, {"riva_unknown_models": "refuse"}, model_of_riva, "", "parakeet"
    ),
    # Google's clients
    "google_models": Row({"google_models": ""}, {"google_models": "telephony=tiny"}, model_of_google, "", "tiny"),
    "google_unknown_models": Row(
        {"google_unknown_models": "default"}, {"google_unknown_models": "refuse"}, model_of_google, "", "telephony"
    ),
    # bounds
    "max_concurrent_calls": Row(
        {"max_concurrent_calls": 1}, {"max_concurrent_calls": 10}, two_held_open, ["held", "UNAVAILABLE"], ["held"] * 2
    ),
    "max_open_calls": Row(
        {"max_open_calls": 1}, {"max_open_calls": 10}, two_held_open, ["held", "UNAVAILABLE"], ["held"] * 2
    ),
    "max_audio_s": Row(
        {"max_audio_s": 0.5}, {"max_audio_s": 5}, called(TRANSCRIBE, message=ONE), ["INVALID_ARGUMENT"], ["OK"]
    ),
    "max_batch_items": Row(
        {"max_batch_items": 1}, {"max_batch_items": 2}, called(BATCH, message=LONG), ["INVALID_ARGUMENT"], ["OK"]
    ),
    "max_held_audio_s": Row(
        {"max_held_audio_s": 1.5}, {"max_held_audio_s": 100}, two_held_open, ["held", BLOCKED], ["held"] * 2
    ),
    "max_metadata_entries": Row(
        {"max_metadata_entries": 16},
        {"max_metadata_entries": 64},
        called(INFO, *[(f"x-note-{n}", "x") for n in range(20)]),
        [BLOCKED],
        ["OK"],
    ),
    "request_arrival_timeout_s": Row(
        {"request_arrival_timeout_s": 60},
        {"request_arrival_timeout_s": 0.2},
        slow_request,
        "waits",
        "DEADLINE_EXCEEDED",
    ),
    "max_unfinished_bytes": Row(
        {"max_unfinished_bytes": 2**20},
        {"max_unfinished_bytes": 2**21},
        slow_requests,
        {"waits": 3, BLOCKED: 2},
        {"waits": 5},
        {"max_message_bytes": 64 * 1024},
    ),
    # jobs and uploads
    "max_pending_jobs": Row(
        {"max_pending_jobs": 1}, {"max_pending_jobs": 5}, pending, BLOCKED, "OK", {"max_concurrent_jobs": 0}
    ),
    "max_job_audio_s": Row(
        {"max_job_audio_s": 0.5}, {"max_job_audio_s": 5}, job_state, FAILED, COMPLETED, SHORT_RETRIES
    ),
    "job_ttl": Row({"job_ttl": 100}, {"job_ttl": 500}, job_kept_s, 100, 500, SHORT_RETRIES),
    "job_max_attempts": Row(
        {"job_max_attempts": 1}, {"job_max_attempts": 2}, job_attempts, 1, 2, SHORT_RETRIES, n_failures=100
    ),
    "job_retry_delay_s": Row(
        {"job_retry_delay_s": 0.01},
        {"job_retry_delay_s": 3600},
        job_retried,
        True,
        False,
        SHORT_RETRIES,
        n_failures=1,
    ),
    "job_chunk_s": Row({"job_chunk_s": 5}, {"job_chunk_s": 60}, job_chunks, lambda n: n > 1, 1, SHORT_RETRIES),
    "max_upload_bytes": Row(
        {"max_upload_bytes": 1024},
        {"max_upload_bytes": 5000},
        uploads,
        "INVALID_ARGUMENT",
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    "max_unfinished_uploads": Row(
        {"max_unfinished_uploads": 1},
        {"max_unfinished_uploads": 2},
        upload_opened,
        ["OK", BLOCKED],
        ["OK", BLOCKED],
        {"max_concurrent_jobs": 0},
    ),
    "max_upload_bytes_per_caller": Row(
        {"max_upload_bytes_per_caller": 1024},
        {"max_upload_bytes_per_caller": 5000},
        uploads,
        BLOCKED,
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    "upload_ttl": Row({"upload_ttl": 1000}, {"upload_ttl": 9000}, upload_kept_s, 10, 90, {"max_concurrent_jobs": 0}),
    "keep_job_audio": Row({"keep_job_audio": False}, {"keep_job_audio": True}, audio_kept, False, True, SHORT_RETRIES),
    "min_free_disk_percent": Row(
        {"min_free_disk_percent": 10},
        {"min_free_disk_percent": 60},
        uploads,
        "OK",
        "UNAVAILABLE",
        {"max_concurrent_jobs": 0},
    ),
    "audio_uri_prefixes": Row(
        {"audio_uri_prefixes": ""},
        {"audio_uri_prefixes": "file://{directory}/"},
        by_uri,
        "INVALID_ARGUMENT",
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    # streams
    "max_streams": Row({"max_streams": 1}, {"max_streams": 2}, two_streams, ["open", "UNAVAILABLE"], ["open"] * 2),
    "max_streams_per_caller": Row(
        {"max_streams_per_caller": 1}, {"max_streams_per_caller": 2}, two_streams, ["open", BLOCKED], ["open"] * 2
    ),
    "max_stream_s": Row({"max_stream_s": 1}, {"max_stream_s": 10}, stream_audio, "AUDIO_TOO_LONG", "OK"),
    "stream_idle_timeout_s": Row(
        {"stream_idle_timeout_s": 60}, {"stream_idle_timeout_s": 1}, idle_stream, "open", "OK"
    ),
    "stream_resume_window_s": Row(
        {"stream_resume_window_s": 60}, {"stream_resume_window_s": 0}, resumed, "resumed", "NOT_FOUND"
    ),
    "max_kept_streams": Row({"max_kept_streams": 10}, {"max_kept_streams": 0}, resumed, "resumed", "NOT_FOUND"),
    "stream_interim_interval_s": Row(
        {"stream_interim_interval_s": 1}, {"stream_interim_interval_s": 2}, interim_interval_s, 1.0, 2.0
    ),
}


# Where each of the others is tested: with a real engine, and with a real process.
ELSEWHERE = {
    "engine_key": "tests/faults/test_engine_connections.py",
    "user_models": "tests/model/test_reloaded_models.py",
    "max_model_memory_bytes": "tests/model/test_reloaded_models.py",
    "log_level": "tests/service/test_hang_up.py",
    "log_format": "tests/service/test_hang_up.py",
}
