"""Settings of the process: where it listens, what it keeps, its connections and how it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from typeless_grpc.access.address import networks
from typeless_grpc.config.values import ExpandedPath, Group, Reloadable, SplitAtCommas


class ServerSettings(Group):
    """Where the server listens and stores data, its connections, and how it stops."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Use 0.0.0.0 or [::] to accept connections from other machines.",
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port to listen on. 0 takes a free port.")
    front_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that take calls on `port`, each with an event loop of its own; Linux divides the "
        "connections between them. More than 1 share the cores, or the engines of `engine_address`, and need "
        "`redis_url` (unless limits are off) and `stream_store = database`. All bounds on what is open at once hold "
        "for each process. A process that ends or hangs is started again.",
    )
    data_dir: ExpandedPath = Field(
        default_factory=lambda: platformdirs.user_data_path("typeless"),
        description="Directory for models, jobs, uploads and keys. The default is the platform's data directory.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="Database of keys, limits, jobs and uploads: postgresql://USER:PASSWORD@HOST/DATABASE. Servers "
        "and workers with the same database share them. The default is SQLite files in `data_dir`.",
    )

    tls_cert_file: ExpandedPath | None = Field(
        None,
        description="PEM file with the server's certificate chain. Enables TLS. A changed file is read again "
        "without a restart.",
    )
    tls_key_file: ExpandedPath | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_ca_file: ExpandedPath | None = Field(
        None,
        description="PEM file with certificate authorities. Clients must then present a certificate that one of "
        "them signed (mutual TLS).",
    )
    trusted_proxies: Reloadable[Annotated[tuple[str, ...], NoDecode, SplitAtCommas]] = Field(
        (),
        description="Addresses or networks of proxies whose `x-forwarded-for` header is trusted, separated by "
        "commas: `10.0.0.0/8,192.0.2.1`.",
    )

    max_connections: int = Field(
        1000, ge=1, le=1_000_000, description="Open connections. The server closes further ones as they arrive."
    )
    max_calls_per_connection: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Open calls on one connection. Further calls wait in the client. The lower it is, the less can "
        "a client that opens and resets calls delay those of others.",
    )
    min_ping_interval_s: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="Minimum seconds between a client's keepalive pings. The server closes the connection of a "
        "client that pings more often. Go and Java clients may ping every 10 s.",
    )
    keepalive_s: float = Field(
        60.0,
        ge=1,
        le=86400,
        description="Seconds without data from a client after which the server pings it. If no answer arrives "
        "within 20 s, the connection closes and its calls end.",
    )
    max_connection_age_s: float = Field(
        3600.0,
        ge=1,
        le=31_536_000,
        description="Seconds, plus or minus 10 %, after which a client must reconnect, so that it finds new "
        "servers. Running calls may continue for `max_call_s`; clients resume streams that last longer.",
    )
    drain_timeout_s: Reloadable[float] = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that running calls may continue after SIGTERM. Then they are cancelled.",
    )

    @field_validator("tls_key_file", "tls_client_ca_file")
    @classmethod
    def _requires_certificate(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        has_cert = others.data.get("tls_cert_file") is not None
        if others.field_name == "tls_key_file" and has_cert != (file is not None):
            raise ValueError("tls_cert_file and tls_key_file must be set together")
        if file is not None and not has_cert:
            raise ValueError("has no effect without tls_cert_file")
        return file

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        networks(texts)
        return texts

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(("sqlite:///", "postgresql://")):
            raise ValueError("must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
        return url
