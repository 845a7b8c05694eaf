"""The options that every command with a server has: which one, which key, and how the connection is kept safe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from typeless_grpc.cli.output import fail
from typeless_grpc.client import DEFAULT_TARGET, Tls
from typeless_grpc.client.channels import key_to_send
from typeless_grpc.client.target import target_to_call


@dataclass(frozen=True)
class Connection:
    """To a server. Raises typer.BadParameter where the options do not fit together."""

    server: Annotated[
        str, typer.Option("--server", "-s", envvar="TYPELESS_SERVER", help="Where the server listens, host:port.")
    ] = DEFAULT_TARGET
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="TYPELESS_API_KEY",
            show_default=False,
            help="Key to call with. Others on this machine can read a command line: the variable is safer, or "
            "TYPELESS_API_KEY_FILE, which names a file with it.",
        ),
    ] = None
    use_tls: Annotated[bool, typer.Option("--tls", envvar="TYPELESS_TLS", help="Connect with TLS.")] = False
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca",
            envvar="TYPELESS_TLS_CA",
            exists=True,
            dir_okay=False,
            help="PEM file of the authority to believe, with --tls; the usual ones unless set.",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        typer.Option(
            "--client-cert",
            envvar="TYPELESS_CLIENT_CERT",
            exists=True,
            dir_okay=False,
            help="PEM file of this client's certificate, where the server wants one.",
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        typer.Option(
            "--client-key",
            envvar="TYPELESS_CLIENT_KEY",
            exists=True,
            dir_okay=False,
            help="PEM file of its private key.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise typer.BadParameter("go together", param_hint="--client-cert and --client-key")

    def check(self, given: Mapping[str, str]) -> None:
        """Stop with exit code 1 where a call cannot carry the key, or the server is none. given: see `options`."""
        try:
            target_to_call(self.server)
            key_to_send(self.api_key if "api_key" in given else None)
        except ValueError as error:
            fail(str(error))

    def refuse(self, given: Mapping[str, str], why: str) -> None:
        """Refuse a connection on a command line that would not use it. Raises typer.BadParameter."""
        if unused := [given[field.name] for field in fields(Connection) if field.name in given]:
            raise typer.BadParameter(f"{why}, to which {', '.join(unused)} would say nothing", param_hint="--local")

    @property
    def tls(self) -> Tls | None:
        """What the options ask for; None is plain text."""
        # Naming an authority or a certificate means TLS: there is no other use for them.
        if self.use_tls or self.tls_ca is not None or self.client_cert is not None:
            return Tls(ca=self.tls_ca, cert=self.client_cert, key=self.client_key)
        return None
