"""Settings of the console."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from typeless_grpc.config.values import Group, SplitAtCommas


class ConsoleSettings(Group):
    """The console: a web page, and a bridge from HTTP and WebSocket to gRPC. See `docs/console.md`."""

    console_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port of the console. Off by default; 0 takes a free port.",
    )
    console_host: str = Field("127.0.0.1", description="Address that the console's port listens on.")
    console_origins: Annotated[tuple[str, ...], NoDecode, SplitAtCommas] = Field(
        (),
        description="Origins of pages that may use the console's port besides its own page, separated by commas: "
        "`https://speech.example.com`. Also the name under which a proxy serves the console.",
    )
    max_console_connections: int = Field(
        256, ge=1, le=100_000, description="Open connections to the console. Further ones are closed as they arrive."
    )

    @field_validator("console_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or f"{parts.scheme}://{parts.netloc}" != origin
            ):
                raise ValueError(f"{origin!r} is no origin: https://HOST or https://HOST:PORT, without a path")
        return origins
