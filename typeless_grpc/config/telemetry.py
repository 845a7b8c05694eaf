"""Settings of logs and metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from typeless_grpc.config.values import Group, Reloadable


class TelemetrySettings(Group):
    """Logs and metrics."""

    log_level: Reloadable[Literal["debug", "info", "warning", "error"]] = Field(
        "info", description="Lowest severity of log lines that are written."
    )
    log_format: Reloadable[Literal["auto", "text", "json"]] = Field(
        "auto", description="Format of log lines. auto is text on a terminal and JSON otherwise."
    )
    log_text: Reloadable[bool] = Field(
        False, description="Write the text of transcripts to the log line of each call. Texts may be personal data."
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for Prometheus (`GET /metrics`) of a server or a worker. Off by default; 0 takes any.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address that the metrics port listens on.")
