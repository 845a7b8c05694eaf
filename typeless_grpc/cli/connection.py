"""The options that every command with a server has: which key, and how the connection is kept safe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from typeless_grpc.client import Tls

Server = Annotated[
    str, typer.Option("--server", "-s", envvar="TYPELESS_SERVER", help="Where the server listens, host:port.")
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="TYPELESS_API_KEY",
        show_default=False,
        help="Key to call with. Others on this machine can read a command line: the variable is safer.",
    ),
]
UseTls = Annotated[bool, typer.Option("--tls", envvar="TYPELESS_TLS", help="Connect with TLS.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        envvar="TYPELESS_TLS_CA",
        exists=True,
        dir_okay=False,
        help="PEM file of the authority to believe, with --tls; the usual ones unless set.",
    ),
]
ClientCert = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        envvar="TYPELESS_CLIENT_CERT",
        exists=True,
        dir_okay=False,
        help="PEM file of this client's certificate, where the server wants one.",
    ),
]
ClientKey = Annotated[
    Path | None,
    typer.Option(
        "--client-key",
        envvar="TYPELESS_CLIENT_KEY",
        exists=True,
        dir_okay=False,
        help="PEM file of its private key.",
    ),
]


def tls_of(use_tls: bool, ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """What the options ask for; None is plain text. Raises typer.BadParameter where they do not fit together."""
    if (cert is None) != (key is None):
        raise typer.BadParameter("go together", param_hint="--client-cert and --client-key")
    # Naming an authority or a certificate means TLS: there is no other use for them.
    if use_tls or ca is not None or cert is not None:
        return Tls(ca=ca, cert=cert, key=key)
    return None
