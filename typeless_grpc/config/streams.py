"""Settings of streams."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from typeless_grpc.config.values import Group, Reloadable


class StreamSettings(Group):
    """Bounds of StreamTranscribe calls and of the sessions behind them."""

    max_streams: Reloadable[int] = Field(
        256,
        ge=1,
        le=100_000,
        description="Streams of all callers on this server. Further ones get UNAVAILABLE.",
    )
    max_streams_per_caller: Reloadable[int] = Field(
        10, ge=1, le=100_000, description="Streams of one caller, including those that wait to be resumed."
    )
    max_stream_s: Reloadable[float] = Field(
        4 * 3600.0, ge=1, le=7 * 86400, description="Audio that one stream accepts in all, in seconds."
    )
    stream_idle_timeout_s: Reloadable[float] = Field(
        60.0, ge=1, le=86400, description="Seconds without audio or KEEP_ALIVE after which a stream ends."
    )
    stream_resume_window_s: Reloadable[float] = Field(
        60.0, ge=0, le=3600, description="Seconds for which a stream can be resumed after its call broke."
    )
    stream_store: Literal["none", "database"] = Field(
        "none",
        description="Where sessions of streams are kept besides the memory of their server: `none`, or `database`, "
        "that of jobs (`database_url`) with its storage (`storage_url`). With `database`, another server resumes a "
        "session if its server is lost.",
    )
    max_kept_streams: Reloadable[int] = Field(
        256,
        ge=0,
        le=100_000,
        description="Streams without a call that wait to be resumed. Beyond it, the oldest are dropped.",
    )
    stream_interim_interval_s: Reloadable[float] = Field(
        1.0,
        ge=0.2,
        le=60,
        description="Seconds between interim results if the request sets none. In long utterances they come less "
        "often.",
    )
    stream_interims_at_once: int = Field(
        2,
        ge=1,
        le=64,
        description="Interim results of all streams that are decoded in parallel. Raise it on a fast GPU.",
    )
    stream_held_audio_s: float = Field(
        360.0,
        ge=180,
        le=3600,
        description="Audio of one stream that may wait for the engine, in seconds of 64 kB. Beyond it, the server "
        "stops reading from the caller.",
    )
    stream_waiting_bytes: int = Field(
        1024 * 1024,
        ge=4096,
        le=1024 * 1024 * 1024,
        description="Received audio of one stream that is not converted to samples yet, in bytes. Beyond it, the "
        "server stops reading from the caller.",
    )
    stream_unread_events: int = Field(
        256,
        ge=16,
        le=100_000,
        description="Events of one stream that its caller has not read. Beyond it, the server stops reading from "
        "the caller.",
    )
    stream_file_chunks: int = Field(
        16,
        ge=1,
        le=64,
        description="Chunks of one FILE stream that are decoded in parallel. More fill batches better.",
    )
