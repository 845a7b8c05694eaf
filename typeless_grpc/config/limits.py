"""Settings that bound what callers may use: rates for each caller, and totals for the server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from typeless_grpc.config.values import Group, Rate, Reloadable

_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://")


class LimitSettings(Group):
    """How much callers may use. `docs/limits.md` lists every limit and what happens beyond it."""

    rate_limit_enabled: bool = Field(
        True, description="Limit what each caller may use. If disabled, no limit of a single caller applies."
    )
    rate_limit_transcribe: Reloadable[Rate] = Field(
        "10/minute",
        description="Transcribe calls of one caller: AMOUNT/PERIOD, AMOUNT/PERIOD:BURST, or off.",
    )
    rate_limit_long: Reloadable[Rate] = Field(
        "5/minute",
        description="Recordings of one caller longer than `long_audio_s`, in Transcribe and BatchTranscribe. They "
        "also count against those calls' own limits.",
    )
    rate_limit_batch: Reloadable[Rate] = Field("3/minute", description="BatchTranscribe calls of one caller.")
    rate_limit_stream: Reloadable[Rate] = Field(
        "10/minute", description="StreamTranscribe calls that one caller starts."
    )
    rate_limit_jobs: Reloadable[Rate] = Field(
        "60/minute", description="JobsService and UploadService calls of one caller."
    )
    rate_limit_config: Reloadable[Rate] = Field(
        "60/minute", description="AdminService, ModelService and ServerService calls of one caller."
    )
    rate_limit_health: Reloadable[Rate] = Field(
        "1000/minute", description="Reflection calls of one caller. Health checks are never limited."
    )
    rate_limit_riva: Reloadable[Rate] = Field(
        "300/minute",
        description="Recognize and StreamingRecognize calls of one caller that is a client of NVIDIA Riva's.",
    )
    rate_limit_google: Reloadable[Rate] = Field(
        "600/minute",
        description="Calls of one caller that is a client of Google Cloud Speech, with those that poll operations.",
    )
    rate_limit_audio: Reloadable[Rate] = Field(
        "3600/minute:14400",
        description="Seconds of audio of one caller, separately for each of transcribe, batch, stream, riva "
        "and google.",
    )
    rate_limit_wrong_keys: Reloadable[Rate] = Field(
        "30/minute:60",
        description="Wrong keys from one address. Beyond it, calls from there with a wrong key must wait.",
    )
    rate_limit_anonymous_percent: Reloadable[int] = Field(
        50,
        ge=1,
        le=100,
        description="Percentage of each limit that callers without a key have while `auth_enabled` is on.",
    )
    rate_limit_max_buckets: int = Field(
        100_000,
        ge=100,
        le=10_000_000,
        description="Token buckets kept in memory. Beyond it, the least recently used one is dropped.",
    )
    long_audio_s: Reloadable[float] = Field(
        300.0,
        gt=0,
        le=86400,
        description="Length in seconds beyond which a recording counts against `rate_limit_long`.",
    )
    max_calls_per_caller: Reloadable[int] = Field(
        32,
        ge=1,
        le=100_000,
        description="Open calls of one caller in each group of calls except streams.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="Redis that lets all servers share the rate limits: redis://HOST:6379/0, rediss://, unix://, "
        "redis+sentinel://HOST:26379,HOST:26379/NAME or redis+cluster://HOST:6379. By default each "
        "server limits on its own.",
    )
    redis_timeout_s: float = Field(
        2.0,
        gt=0,
        le=30,
        description="Seconds without an answer after which Redis counts as unavailable. With less, a short delay "
        "does too.",
    )
    redis_fallback: Literal["local", "refuse"] = Field(
        "local",
        description="While Redis is unavailable, limit each server on its own (local) or refuse calls (refuse).",
    )

    max_concurrent_calls: Reloadable[int] = Field(
        64,
        ge=1,
        le=100_000,
        description="Transcribe and BatchTranscribe calls in progress, including queued ones. Further ones get "
        "UNAVAILABLE.",
    )
    max_open_calls: Reloadable[int] = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Open calls of any kind on this server. Further ones get UNAVAILABLE.",
    )
    max_call_s: float = Field(
        3600.0,
        gt=0,
        le=86400,
        description="Seconds after which a call ends. Streams, uploads and watches are exempt.",
    )
    max_audio_s: Reloadable[float] = Field(
        3600.0,
        gt=0,
        le=86400,
        description="Longest recording of Transcribe and BatchTranscribe, in seconds. Checked while decoding.",
    )
    max_batch_items: Reloadable[int] = Field(
        10, ge=1, le=1000, description="Recordings in one BatchTranscribe request."
    )
    max_held_audio_s: Reloadable[float] = Field(
        14400.0,
        gt=0,
        description="Decoded audio that all calls and streams hold in memory, in seconds of 64 kB; a second of a "
        "stream counts twice. Beyond it, recordings and new streams are refused, and running streams "
        "are slowed down.",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=1024 * 1024 * 1024,
        description="Size of a request message, in bytes. Larger ones are refused.",
    )
    max_metadata_bytes: int = Field(
        16 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="Size of a call's headers in bytes, as HTTP/2 counts them. Calls with more are refused.",
    )
    max_metadata_entries: Reloadable[int] = Field(
        64, ge=16, le=10_000, description="Number of a call's headers. Calls with more are refused."
    )
    request_arrival_timeout_s: Reloadable[float] = Field(
        120.0,
        gt=0,
        le=86400,
        description="Seconds within which the request of a unary call must arrive completely. Raise it for callers "
        "with slow connections.",
    )
    max_unfinished_bytes: Reloadable[int] = Field(
        1024**3,
        ge=1024**2,
        description="Memory for requests that take more than a second to arrive, in bytes. Each counts as the "
        "largest possible request; one caller may use a quarter. Raise it if many callers send large "
        "audio slowly.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(_REDIS_SCHEMES)}")
        return url
