"""The settings of a server: one flat tree, each with its unit, default and the reason to change it.

A value comes from a flag, else the environment (`TYPELESS_PORT`), else a TOML file (`port = 50051`), else its default.
What must stay secret may lie in a file that the environment names (`TYPELESS_DATABASE_URL_FILE`), as Docker has it.
Names that nobody knows are errors wherever they stand, and all problems are reported at once. `load` is the only place
that reads any of these; everything else is handed values.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from typeless_grpc.access.address import networks
from typeless_grpc.access.quota import Quota
from typeless_grpc.errors import FieldViolation, InvalidInput

ENV_PREFIX = "TYPELESS_"

# Variables of the same prefix that belong to callers (the command line and the client), not to the server.
CLIENT_VARIABLES = frozenset(
    {
        "TYPELESS_SERVER",
        "TYPELESS_API_KEY",
        "TYPELESS_API_KEY_FILE",
        "TYPELESS_TLS",
        "TYPELESS_TLS_CA",
        "TYPELESS_CLIENT_CERT",
        "TYPELESS_CLIENT_KEY",
        "TYPELESS_CONFIG",
        "TYPELESS_SHARED_AUDIO",
    }
)


# Settings that are secrets, or may have a password in them.
SECRETS = frozenset(
    {
        "api_keys",
        "admin_keys",
        "database_url",
        "redis_url",
        "storage_url",
        "jwt_jwks_url",
        "audio_uri_prefixes",
    }
)
_MAX_SECRET_BYTES = 1024 * 1024


def default_config_file() -> Path:
    """Where a settings file is looked for when none is named."""
    return platformdirs.user_config_path("typeless") / "typeless.toml"


def _expanded(path: Path) -> Path:
    return path.expanduser()


ExpandedPath = Annotated[Path, AfterValidator(_expanded)]


def _named_directories(value: Any) -> Any:
    """Read `calls=/models/calls,notes=/models/notes`, the form that fits a variable or a flag."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
    if any(not (name and path) for name, _, path in pairs):
        raise ValueError("must be NAME=DIRECTORY pairs with commas between them")
    return {name.strip(): path.strip() for name, _, path in pairs}


def _words(value: Any) -> Any:
    """Read `one,two`, the form that fits a variable or a flag."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _rate(value: str) -> str:
    Quota.parse(value)
    return value


Rate = Annotated[str, AfterValidator(_rate)]
OpenService = Literal["health", "reflection", "server"]
JwtAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


# A password may hold what should have been escaped in it, `/` and `@`: what could be one goes to the last `@`.
_USER_OF_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?=[^/]*[:@]).*@", re.IGNORECASE | re.DOTALL)
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration_s(value: Any) -> Any:
    """Read `90`, `90s`, `15m`, `24h` or `7d`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", value)
    if match is None:
        raise ValueError("must be seconds, or a number with s, m, h or d")
    return float(match[1]) * _UNITS_S[match[2]]


Seconds = Annotated[float, BeforeValidator(_duration_s)]


class Settings(BaseSettings):
    """What a server is told. Frozen; the descriptions are what `docs/configuration.md` prints."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True)

    host: str = Field(
        "127.0.0.1", description="Address to listen on. 0.0.0.0 or [::] to be reached from other machines."
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    data_dir: ExpandedPath = Field(
        default_factory=lambda: platformdirs.user_data_path("typeless"),
        description="Directory for models and all that is kept; a platform's usual place unless set.",
    )

    model: str = Field(
        "base", min_length=1, description="Default model: a name of the catalogue, or a directory's path."
    )
    model_dirs: Annotated[dict[str, ExpandedPath], NoDecode, BeforeValidator(_named_directories)] = Field(
        default_factory=dict,
        description="Names for directories that hold converted models: `calls=/models/calls,notes=/models/notes`.",
    )
    model_download: bool = Field(
        True, description="Fetch a default model that is not here yet; off on machines without a way out."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto is a GPU where there is one."
    )
    compute_type: str = Field(
        "auto",
        description="CTranslate2 compute type (int8, float16, float32, …); auto is float16 on a GPU, int8 on a CPU.",
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads for one inference on the CPU; 0 is half of the cores, or of a container's quota of them,"
        " at most 4.",
    )
    beam_size: int = Field(
        1, ge=1, le=10, description="Beams where a call does not say; more is slower and a little better."
    )

    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=1024 * 1024 * 1024,
        description="Largest request message, in bytes.",
    )
    max_audio_s: float = Field(
        3600.0, gt=0, le=86400, description="Longest recording of Transcribe, in seconds; checked while decoding."
    )
    max_model_memory_bytes: int = Field(
        4 * 1024**3,
        ge=0,
        description="Memory of all loaded models, in bytes. For another one the least recently used idle ones are "
        "unloaded; where that does not suffice, or the machine has too little free, it is refused.",
    )
    user_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        (),
        description="Models that calls may have loaded, with commas, besides the default one; others serve while an "
        "admin has them loaded. Empty is every model on this machine; name some where callers are strangers, because "
        "each takes memory and time from the others.",
    )
    encoder_window: Literal["auto", "full"] = Field(
        "auto",
        description="How much audio the encoder is shown: auto is what speech needs, full is faster-whisper's 30 s.",
    )
    max_batch: int = Field(
        8, ge=1, le=64, description="Windows decoded together; more is faster for many callers, slower for the first."
    )
    engine_workers: int = Field(
        0,
        ge=0,
        le=16,
        description="Batches decoded side by side, each with cpu_threads threads of its own; 0 is as many as"
        " there are cores for, at least two, and one on a GPU or a single core.",
    )
    engine_stall_s: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="Seconds without the end of a batch, while work waits, after which health checks say NOT_SERVING;"
        " more for a model that takes so long.",
    )
    max_held_audio_s: float = Field(
        14400.0,
        gt=0,
        description="Decoded audio that all calls and streams hold together, in seconds of 64 kB (a second of a"
        " stream is two); recordings beyond it are refused, streams slowed down, and new ones refused.",
    )
    max_concurrent_calls: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Transcriptions at once, waiting ones included; more are refused with UNAVAILABLE.",
    )
    auth_enabled: bool = Field(
        False,
        description="Look at callers' keys. Off, everyone who reaches the port may make every call but AdminService's.",
    )
    require_auth: bool = Field(
        False,
        description="Refuse callers without a key. Off, they are anonymous, with a part of each limit; a wrong key is "
        "refused either way.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_words)] = Field(
        (), description="Users' keys, with commas between them, beside those that AdminService keeps."
    )
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_words)] = Field(
        (), description="Admins' keys, with commas between them: the way to the first key that AdminService makes."
    )
    open_services: Annotated[tuple[OpenService, ...], NoDecode, BeforeValidator(_words)] = Field(
        ("health", "reflection", "server"),
        description="Services that need no key where one is required: health, reflection, server (ServerService).",
    )
    max_api_keys: int = Field(
        10_000, ge=1, le=1_000_000, description="Keys that may exist, revoked and expired ones left out."
    )
    key_refresh_s: float = Field(
        1.0, ge=0.05, le=60, description="Seconds between looks at the store for keys and limits other servers changed."
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="Where keys, limits, jobs and uploads are kept: postgresql://USER:PASSWORD@HOST/DATABASE to share "
        "them between servers and workers; SQLite files in the data directory unless set.",
    )
    jwt_issuer: str = Field("", description="Take JSON Web Tokens of this issuer (`iss`) beside keys; none unless set.")
    jwt_audience: str = Field("", description="What a token's `aud` must be: this service's name at the issuer.")
    jwt_jwks_url: str = Field("", description="Where the issuer publishes its signing keys, https://…/jwks.json.")
    jwt_algorithms: Annotated[tuple[JwtAlgorithm, ...], NoDecode, BeforeValidator(_words)] = Field(
        ("RS256", "ES256"), min_length=1, description="Signatures that are taken, whatever a token says of itself."
    )
    jwt_roles_claim: str = Field(
        "roles", min_length=1, description="Claim with a caller's roles; dots lead inwards (realm_access.roles)."
    )
    jwt_user_role: str = Field("", description="Role a token must have; any good token will do unless set.")
    jwt_admin_role: str = Field("admin", description="Role that makes a caller an admin; empty is none.")

    tls_cert_file: ExpandedPath | None = Field(
        None, description="PEM file of the server's certificate chain; TLS is off unless set. Read again when changed."
    )
    tls_key_file: ExpandedPath | None = Field(None, description="PEM file of the certificate's private key.")
    tls_client_ca_file: ExpandedPath | None = Field(
        None,
        description="PEM file of the authorities whose certificates clients must have (mutual TLS); off unless set.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        (), description="Addresses or networks of proxies whose x-forwarded-for is believed: `10.0.0.0/8,192.0.2.1`."
    )

    rate_limit_enabled: bool = Field(True, description="Limit what each caller may use; off, all of these limits are.")
    rate_limit_transcribe: Rate = Field(
        "10/minute", description="Transcribe calls of one caller: AMOUNT/PERIOD[:BURST], or off."
    )
    rate_limit_long: Rate = Field(
        "5/minute", description="Transcribe calls with a long recording; these count above too."
    )
    rate_limit_batch: Rate = Field("3/minute", description="BatchTranscribe calls.")
    rate_limit_stream: Rate = Field("10/minute", description="StreamTranscribe calls, as they begin.")
    rate_limit_jobs: Rate = Field("60/minute", description="Calls of JobsService and UploadService.")
    rate_limit_config: Rate = Field("60/minute", description="Calls of AdminService, ModelService and ServerService.")
    rate_limit_health: Rate = Field("1000/minute", description="Reflection; health checks are free.")
    rate_limit_audio: Rate = Field(
        "3600/minute:14400", description="Seconds of audio of one caller, for each of transcribe, batch and stream."
    )
    rate_limit_wrong_keys: Rate = Field(
        "30/minute:60", description="Wrong keys from one address, before it has to wait."
    )
    rate_limit_anonymous_percent: int = Field(
        50, ge=1, le=100, description="Part of each limit that callers without a key have where keys are enabled."
    )
    rate_limit_max_buckets: int = Field(
        100_000, ge=100, le=10_000_000, description="Buckets kept in memory; the longest unused are forgotten first."
    )
    long_audio_s: float = Field(300.0, gt=0, le=86400, description="A recording longer than this, in seconds, is long.")
    max_calls_per_caller: int = Field(
        32, ge=1, le=100_000, description="Calls that one caller may have open at once, in each group but streams."
    )
    max_streams_per_caller: int = Field(
        10, ge=1, le=100_000, description="Streams of one caller at once, those that wait to be resumed included."
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="Redis for limits that hold over all servers, redis://HOST:6379/0, also rediss://, unix://, "
        "redis+sentinel://HOST:26379,HOST:26379/NAME or redis+cluster://HOST:6379; each has its own unless set.",
    )
    redis_timeout_s: float = Field(
        2.0,
        gt=0,
        le=30,
        description="Seconds to wait for Redis, before it counts as away; short ones take a busy moment for that.",
    )
    redis_away: Literal["local", "refuse"] = Field(
        "local", description="While Redis is away: limit each server on its own, or refuse all calls."
    )

    max_call_s: float = Field(
        3600.0, gt=0, le=86400, description="Seconds that one call may take that is neither a stream nor an upload."
    )
    max_open_calls: int = Field(
        1000, ge=1, le=1_000_000, description="Calls open at once on this server; more are refused with UNAVAILABLE."
    )
    max_calls_per_connection: int = Field(
        1000, ge=1, le=1_000_000, description="Calls open at once on one connection; more wait in their client."
    )
    max_metadata_bytes: int = Field(
        16 * 1024, ge=1024, le=1024 * 1024, description="Headers of a call, in bytes, as HTTP/2 counts them."
    )
    max_metadata_entries: int = Field(64, ge=16, le=10_000, description="Headers of a call, counted.")
    max_connections: int = Field(
        1000, ge=1, le=1_000_000, description="Connections open at once; more are closed as they come."
    )
    request_arrival_timeout_s: float = Field(
        120.0,
        gt=0,
        le=86400,
        description="Seconds for the request of a unary call to arrive in whole. Raise it for callers on slow lines.",
    )
    max_unfinished_bytes: int = Field(
        1024**3,
        ge=1024**2,
        description="Bytes held of requests that take more than a second to arrive, each counted as the largest there "
        "can be; a quarter is one caller's. Raise it where many send large audio on slow lines.",
    )
    min_ping_interval_s: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="Seconds between a client's keepalive pings; one that sends more is cut off. Go and Java clients "
        "may send one in 10 s.",
    )
    keepalive_s: float = Field(
        60.0,
        ge=1,
        le=86400,
        description="Seconds without a word from a client until the server asks whether it is there. The calls of one "
        "that does not answer within 20 s end.",
    )
    max_connection_age_s: float = Field(
        3600.0,
        ge=1,
        le=31_536_000,
        description="Seconds, give or take a tenth, until a connection is to be made anew, so that clients find new "
        "servers. Calls that run may go on for `max_call_s`; streams that outlast it are resumed by their clients.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="TCP port for Prometheus (`GET /metrics`); off unless set."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics port.")
    max_batch_items: int = Field(10, ge=1, le=1000, description="Recordings in one BatchTranscribe.")
    profanity_file: ExpandedPath | None = Field(
        None, description="List of the words that mask_profanity masks, in place of the one that comes along."
    )
    decode_threads: int = Field(2, ge=1, le=64, description="Recordings decoded to samples at the same time.")

    storage_url: str = Field(
        "",
        description="Where the audio and the results of jobs lie: a directory or an fsspec URL (s3://BUCKET/PATH) that "
        "all servers and workers reach; a directory in data_dir unless set.",
    )
    max_concurrent_jobs: int = Field(
        3,
        ge=0,
        le=1000,
        description="Jobs that this process runs at the same time; 0 leaves them all to `typeless worker`.",
    )
    max_pending_jobs: int = Field(
        10_000, ge=1, le=10_000_000, description="Jobs of one caller that wait; more are refused."
    )
    max_job_audio_s: Seconds = Field(
        86_400.0, gt=0, le=604_800, description="Longest recording of a job, in seconds (or 90m, 24h)."
    )
    job_ttl: Seconds = Field(
        86_400.0,
        ge=1,
        le=31_536_000,
        description="How long a job and its transcript are kept after its end: seconds, or 90m, 24h, 7d.",
    )
    job_max_attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="Failed runs in a row, for a fault that can pass, after which a job is given up.",
    )
    job_retry_delay_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="Wait before a failed job is run again; each further wait is four times as long, at most 5 min.",
    )
    job_chunk_s: float = Field(
        60.0,
        ge=5,
        le=600,
        description="Jobs are transcribed, kept and reported in chunks of this length to twice of it, cut at pauses. "
        "Shorter repeats less after a crash; longer needs more memory.",
    )
    job_poll_s: float = Field(
        0.0,
        ge=0,
        le=60,
        description="How often a worker looks for pending jobs; 0 is every 0.05 s with SQLite, 0.25 s with PostgreSQL.",
    )
    worker_timeout_s: float = Field(
        20.0,
        ge=2,
        le=3600,
        description="A worker that was not heard of for so long is dead: its jobs go on elsewhere.",
    )
    max_upload_bytes: int = Field(
        2 * 1024**3, ge=1024, le=1024**4, description="Largest upload, and largest audio fetched by URI, in bytes."
    )
    max_unfinished_uploads: int = Field(
        100, ge=1, le=1_000_000, description="Unfinished uploads of one caller; more are refused."
    )
    max_upload_bytes_per_caller: int = Field(
        20 * 1024**3,
        ge=1024,
        le=1024**5,
        description="Audio of one caller that is kept here, in bytes: its uploads, and what came with its jobs or was "
        "fetched for them; more is refused.",
    )
    min_free_disk_percent: float = Field(
        2.0,
        ge=0,
        le=90,
        description="Share of the disk that new audio must leave free, in percent, of the storage and of temporary "
        "files; it is refused below that. More where results or other programs need the room; 0 refuses nothing.",
    )
    keep_job_audio: bool = Field(
        False,
        description="Keep the audio of a job as long as the job, to listen to it again; off, it is deleted as soon as "
        "the job has ended, and results stay.",
    )
    upload_ttl: Seconds = Field(
        86_400.0,
        ge=1,
        le=31_536_000,
        description="How long an upload is kept: unfinished since it was opened, else since its end; longer where a "
        "job needs it. Seconds, or 90m, 24h, 7d.",
    )
    audio_uri_prefixes: Annotated[list[str], NoDecode, BeforeValidator(_words)] = Field(
        default_factory=list,
        description="What AudioSource.uri may name besides uploads, with commas in between: "
        "`file:///srv/audio/,s3://bucket/calls/,https://media.example.com/`. Nothing unless set.",
    )
    audio_uri_timeout_s: float = Field(
        300.0, gt=0, le=86_400, description="Seconds that fetching an https:// recording may take."
    )

    max_streams: int = Field(
        256, ge=1, le=100_000, description="StreamTranscribe calls at once, of all callers; more get UNAVAILABLE."
    )
    max_stream_s: float = Field(
        4 * 3600.0, ge=1, le=7 * 86400, description="Most audio one stream takes, in seconds, resumes included."
    )
    stream_idle_timeout_s: float = Field(
        60.0, ge=1, le=86400, description="Seconds without audio or KEEP_ALIVE after which a stream is ended."
    )
    stream_resume_window_s: float = Field(
        60.0, ge=0, le=3600, description="Seconds for which a stream whose call broke can be resumed."
    )
    max_kept_streams: int = Field(
        256, ge=0, le=100_000, description="Streams without a call kept for their resume window; the oldest go first."
    )
    stream_interim_interval_s: float = Field(
        1.0, ge=0.2, le=60, description="Seconds between interims where a stream does not say; more in long utterances."
    )
    stream_interims_at_once: int = Field(
        2, ge=1, le=64, description="Interim results of all streams at the engine at once; more where a GPU is quick."
    )
    stream_held_audio_s: float = Field(
        360.0,
        ge=180,
        le=3600,
        description="Audio a stream may be ahead of the engine, in seconds of 64 kB; beyond it the caller waits.",
    )
    stream_waiting_bytes: int = Field(
        1024 * 1024,
        ge=4096,
        le=1024 * 1024 * 1024,
        description="Audio a stream has taken and not decoded, in bytes; beyond it and a message the caller waits.",
    )
    stream_unread_events: int = Field(
        256, ge=16, le=100_000, description="Events a caller may leave unread; beyond it nothing is taken from it."
    )
    stream_file_windows: int = Field(
        16, ge=1, le=64, description="Pieces of one FILE stream at the engine at once; more make fuller batches."
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that running calls may go on after SIGTERM, before they are cancelled.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Log lines; auto is text on a terminal, JSON elsewhere."
    )

    @field_validator("require_auth", "api_keys", "admin_keys", "jwt_issuer")
    @classmethod
    def _not_without_auth(cls, value: Any, others: ValidationInfo) -> Any:
        if value and not others.data.get("auth_enabled", True):
            raise ValueError("means nothing unless auth_enabled is true")
        return value

    @field_validator("admin_keys")
    @classmethod
    def _one_role_each(cls, keys: tuple[SecretStr, ...], others: ValidationInfo) -> tuple[SecretStr, ...]:
        if set(keys) & set(others.data.get("api_keys", ())):
            raise ValueError("a key is either an admin's or a user's, not both")
        return keys

    @field_validator("jwt_audience", "jwt_jwks_url")
    @classmethod
    def _all_of_jwt(cls, value: str, others: ValidationInfo) -> str:
        if "jwt_issuer" in others.data and bool(value) != bool(others.data["jwt_issuer"]):
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks_url belong together")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _http_only(cls, url: str) -> str:
        if url and not url.startswith(("https://", "http://")):
            raise ValueError("must be an http(s) URL")
        return url

    @field_validator("tls_key_file", "tls_client_ca_file")
    @classmethod
    def _all_of_tls(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        has_cert = others.data.get("tls_cert_file") is not None
        if others.field_name == "tls_key_file" and has_cert != (file is not None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        if file is not None and not has_cert:
            raise ValueError("means nothing without tls_cert_file")
        return file

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        networks(texts)
        return texts

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(("sqlite:///", "postgresql://")):
            raise ValueError("must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
        return url

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(_REDIS_SCHEMES)}")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag, then environment, then file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))


@dataclass(frozen=True)
class Loaded:
    """Settings in force, and where each came from: "flag", "environment", "file" or "default"."""

    settings: Settings
    origins: Mapping[str, str]


def load(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read the settings: flags (those that are not None) > environment > TOML file > defaults.

    file: must exist where it is named here or by TYPELESS_CONFIG; the usual place may be empty.
    Raises InvalidInput with every problem at once, each under the name the user wrote.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    named = file or (Path(os.environ["TYPELESS_CONFIG"]).expanduser() if os.environ.get("TYPELESS_CONFIG") else None)
    if named is not None and not named.is_file():
        raise InvalidInput("config", f"there is no file {named}", reason="CONFIG_INVALID")
    from_file = named or default_config_file()
    secrets, problems = _secrets()

    class FromHere(Settings):
        model_config = SettingsConfigDict(toml_file=from_file)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flag, *others = super().settings_customise_sources(settings_cls, *sources, **named)
            return (flag, InitSettingsSource(settings_cls, secrets), *others)

    try:
        layers = {
            "flag": given,
            "environment": secrets
            | {name: 0 for name in Settings.model_fields if ENV_PREFIX + name.upper() in os.environ},
            "file": TomlConfigSettingsSource(FromHere)(),
        }
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("config", f"{from_file} is not TOML: {error}", reason="CONFIG_INVALID") from error
    origins = {
        name: next((origin for origin, values in layers.items() if name in values), "default")
        for name in Settings.model_fields
    }
    problems += _unknown_variables()
    try:
        settings = FromHere(**given)
    except ValidationError as error:
        problems += [_violation(detail["loc"], detail["msg"], origins, from_file, secrets) for detail in error.errors()]
    if problems:
        raise InvalidInput.of(problems)
    return Loaded(settings, origins)


def private(settings: Settings) -> Settings:
    """The same for a server that only its own process calls: no keys, no limits, no TLS, no port for metrics."""
    open_to_us = {"auth_enabled": False, "require_auth": False, "rate_limit_enabled": False}
    return settings.model_copy(update=open_to_us | {"tls_cert_file": None, "metrics_port": None})


def public(settings: Settings) -> dict[str, Any]:
    """Setting to value as JSON has it, None in the place of secrets that are set."""
    hidden = {name for name in Settings.model_fields if is_secret(getattr(settings, name))}
    return {name: None if name in hidden else _shown(v) for name, v in settings.model_dump(mode="json").items()}


def _shown(value: Any) -> Any:
    """Without the user and the password that a URL may have (`s3://KEY:SECRET@HOST/PATH`), and as text.

    A path need not be text: what is no UTF-8 in it is written as `\\xe9`.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return _USER_OF_URL.sub(r"\1***@", text)
    return [_shown(one) for one in value] if isinstance(value, list) else value


def is_secret(value: Any) -> bool:
    """Whether a setting's value must not be shown; one that is not set is no secret."""
    return (isinstance(value, SecretStr) and bool(value)) or (isinstance(value, tuple) and any(map(is_secret, value)))


def _secrets() -> tuple[dict[str, str], list[FieldViolation]]:
    """Settings that are in files which the environment names, and what is wrong with those files."""
    found, problems = dict[str, str](), list[FieldViolation]()
    for name in sorted(SECRETS):
        variable = ENV_PREFIX + name.upper()
        file = os.environ.get(f"{variable}_FILE", "")
        if not file:
            continue
        if os.environ.get(variable):
            problems.append(FieldViolation(f"{variable}_FILE", f"{variable} is set, too: one of them is the value"))
            continue
        try:
            text = _secret(Path(file).expanduser())
            # Of several, one on each line will do.
            found[name] = text if name.endswith("_url") else ",".join(text.splitlines())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            problems.append(FieldViolation(f"{variable}_FILE", f"{file} cannot be used: {why}"))
    return found, problems


def _secret(file: Path) -> str:
    """What is in a file, without the white space around it. Raises OSError, or ValueError, which does not show it."""
    with file.open("rb") as content:
        data = content.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise ValueError(f"it has more than {_MAX_SECRET_BYTES} bytes")
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    if not text:
        raise ValueError("it is empty")
    return text


def _unknown_variables() -> list[FieldViolation]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    known |= {f"{ENV_PREFIX}{name.upper()}_FILE" for name in SECRETS}
    # In any case, because pydantic would take `typeless_port` for what it is not documented to be.
    ours = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX))
    unknown = [name for name in ours if name not in known]
    return [FieldViolation(name, "no setting has this name" + _did_you_mean(name.upper(), known)) for name in unknown]


def _violation(
    location: tuple[int | str, ...], why: str, origins: Mapping[str, str], file: Path, secrets: Mapping[str, str]
) -> FieldViolation:
    name = str(location[0]) if location else ""
    if name not in Settings.model_fields:
        return FieldViolation(
            f"{name} ({file})", "no setting has this name" + _did_you_mean(name, Settings.model_fields)
        )
    written = {
        "flag": "--" + name.replace("_", "-"),
        "environment": ENV_PREFIX + name.upper() + ("_FILE" if name in secrets else ""),
        "file": f"{name} ({file})",
        "default": name,
    }[origins[name]]
    return FieldViolation(written, why)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
