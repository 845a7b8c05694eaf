"""Settings of jobs, uploads, and audio that requests name by URI."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from typeless_grpc.config.values import Group, Reloadable, Seconds, SplitAtCommas


class JobSettings(Group):
    """How jobs run, how long they and uploads are kept, and where audio may be fetched from."""

    storage_url: str = Field(
        "",
        description="Storage of job audio and results: a directory or an fsspec URL (s3://BUCKET/PATH) that all "
        "servers and workers can reach. The default is a directory in `data_dir`.",
    )
    max_concurrent_jobs: int = Field(
        3,
        ge=0,
        le=1000,
        description="Jobs that this process runs in parallel. 0 leaves all jobs to `typeless worker`.",
    )
    max_pending_jobs: Reloadable[int] = Field(
        10_000, ge=1, le=10_000_000, description="Pending jobs of one caller. Further ones are refused."
    )
    max_job_audio_s: Reloadable[Seconds] = Field(
        86_400.0,
        gt=0,
        le=604_800,
        description="Longest recording of a job: seconds, or a number with a unit (90m, 24h). Jobs with longer ones"
        " fail.",
    )
    job_ttl: Reloadable[Seconds] = Field(
        86_400.0,
        ge=1,
        le=31_536_000,
        description="Time after its end at which a job and its transcript are deleted: seconds, or a number with a "
        "unit (90m, 24h, 7d).",
    )
    job_max_attempts: Reloadable[int] = Field(
        5, ge=1, le=100, description="Consecutive runs with a transient error after which a job fails for good."
    )
    job_retry_delay_s: Reloadable[float] = Field(
        2.0,
        gt=0,
        le=3600,
        description="Seconds before the first retry of a job. Each further delay is four times as long, at most 5 "
        "minutes.",
    )
    job_chunk_s: Reloadable[float] = Field(
        60.0,
        ge=5,
        le=600,
        description="Minimum length in seconds of the chunks in which a job's recording is transcribed, stored and "
        "reported. Chunks are cut at pauses, and at most twice as long. With shorter chunks less is "
        "repeated after a crash; longer ones need more memory.",
    )
    job_poll_s: float = Field(
        0.0,
        ge=0,
        le=60,
        description="Seconds between a worker's reads of the queue. 0 is 0.05 s with SQLite and 0.25 s with "
        "PostgreSQL.",
    )
    worker_timeout_s: float = Field(
        20.0,
        ge=2,
        le=3600,
        description="Seconds without a heartbeat after which a worker's jobs are reassigned.",
    )

    max_upload_bytes: Reloadable[int] = Field(
        2 * 1024**3,
        ge=1024,
        le=1024**4,
        description="Size of an upload, and of audio fetched by URI, in bytes. Larger ones are refused.",
    )
    max_unfinished_uploads: Reloadable[int] = Field(
        100, ge=1, le=1_000_000, description="Unfinished uploads of one caller. Further ones are refused."
    )
    max_upload_bytes_per_caller: Reloadable[int] = Field(
        20 * 1024**3,
        ge=1024,
        le=1024**5,
        description="Stored audio of one caller, in bytes: uploads, and audio that came with jobs or was fetched "
        "for them. More is refused. With `stream_store`, the audio of its open streams may have as much again.",
    )
    upload_ttl: Reloadable[Seconds] = Field(
        86_400.0,
        ge=1,
        le=31_536_000,
        description="Time after which an upload is deleted, counted from its end, or from its start if it is "
        "unfinished: seconds, or a number with a unit (90m, 24h, 7d). An upload that a job needs stays "
        "until the job ends.",
    )
    keep_job_audio: Reloadable[bool] = Field(
        False,
        description="Keep a job's audio as long as the job. If disabled, the audio is deleted when the job ends; "
        "the result stays.",
    )
    min_free_disk_percent: Reloadable[float] = Field(
        2.0,
        ge=0,
        le=90,
        description="Percentage of the disk that must stay free, for the storage and for temporary files. Below it,"
        " new audio is refused. Raise it if results or other programs need the space; 0 disables the "
        "check.",
    )
    audio_uri_prefixes: Reloadable[Annotated[list[str], NoDecode, SplitAtCommas]] = Field(
        default_factory=list,
        description="Prefixes that AudioSource.uri may have besides uploads, separated by commas: "
        "`file:///srv/audio/,s3://bucket/calls/,https://media.example.com/`. None by default.",
    )
    audio_uri_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds within which a recording must be fetched from an https:// URL.",
    )
