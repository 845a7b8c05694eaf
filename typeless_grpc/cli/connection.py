"""The options of every command that calls a server: its address, the API key and TLS."""

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
    """A connection to a server. Raises typer.BadParameter if the options contradict one another."""

    server: Annotated[
        str, typer.Option("--server", "-s", envvar="TYPELESS_SERVER", help="Address of the server, HOST:PORT.")
    ] = DEFAULT_TARGET
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="TYPELESS_API_KEY",
            show_default=False,
            help="API key. Other users of this machine can read a command line: prefer the variable, or "
            "TYPELESS_API_KEY_FILE with the path of a file.",
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
            help="PEM file of the certificate authority to trust; the system's by default. Implies --tls.",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        typer.Option(
            "--client-cert",
            envvar="TYPELESS_CLIENT_CERT",
            exists=True,
            dir_okay=False,
            help="PEM file of a client certificate, for mutual TLS.",
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        typer.Option(
            "--client-key",
            envvar="TYPELESS_CLIENT_KEY",
            exists=True,
            dir_okay=False,
            help="PEM file of the private key of --client-cert.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise typer.BadParameter("go together", param_hint="--client-cert and --client-key")

    def check(self, given: Mapping[str, str]) -> None:
        """End the command with exit code 1 if the server or the key is invalid. given: see `options`."""
        try:
            target_to_call(self.server)
            key = key_to_send(self.api_key if "api_key" in given else None)
        except ValueError as error:
            fail(str(error))
        # The client must not read the key again: the file may be a pipe.
        object.__setattr__(self, "api_key", key)

    def refuse(self, given: Mapping[str, str], why: str) -> None:
        """Refuse connection options that the command would ignore. Raises typer.BadParameter."""
        if unused := [given[field.name] for field in fields(Connection) if field.name in given]:
            raise typer.BadParameter(f"{why}, so it takes no {', '.join(unused)}", param_hint="--local")

    @property
    def tls(self) -> Tls | None:
        """The files for TLS; None for plain text."""
        # A certificate has no use without TLS.
        if self.use_tls or self.tls_ca is not None or self.client_cert is not None:
            return Tls(ca=self.tls_ca, cert=self.client_cert, key=self.client_key)
        return None
