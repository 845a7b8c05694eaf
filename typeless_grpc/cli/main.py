"""The entry point of `typeless`."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line. Without its libraries, print what to install."""
    # OpenBLAS reads this when NumPy is imported. Nothing here multiplies large matrices with NumPy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # gRPC would print its own line above our error message.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Characters that the terminal's encoding lacks are written as `\\u4f60`.
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
