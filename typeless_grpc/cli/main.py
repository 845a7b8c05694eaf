"""`typeless`: one file per group of commands, put together here."""

from __future__ import annotations

import sys


def main() -> None:
    """The console script; says what to install where the base install lacks the command line."""
    try:
        from typeless_grpc.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name in {"typer", "rich", "click"}:
            sys.exit("The command line is an extra: pip install 'typeless-grpc[cli]'")
        raise
    app()
