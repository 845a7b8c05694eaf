"""`typeless`: one file per group of commands, put together here."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The console script; says what to install where the base install lacks the command line."""
    # What goes wrong is a line of ours; gRPC would put one in C++ above it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from typeless_grpc.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name in {"typer", "rich", "click"}:
            sys.exit("The command line is an extra: pip install 'typeless-grpc[cli]'")
        raise
    app()
