"""`typeless`: one file per group of commands, put together here."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """The console script; says what to install where the base install lacks the command line."""
    # OpenBLAS reads this when NumPy is imported. Nothing here multiplies large matrices with NumPy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What goes wrong is a line of ours; gRPC would put one in C++ above it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What the terminal's encoding lacks is written as `\\u4f60`, and ends nothing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        import typer

        from typeless_grpc.cli.commands import app
        from typeless_grpc.cli.failures import system_failures_as_lines
    except ModuleNotFoundError as error:
        if error.name in {"typer", "rich", "click"}:
            sys.exit("The command line is an extra: pip install 'typeless-grpc[cli]'")
        raise
    try:
        with system_failures_as_lines():
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)
