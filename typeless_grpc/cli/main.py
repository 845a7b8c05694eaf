"""The entry point of `typeless`."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def main() -> None:
    """Run the command line. Without its libraries, print what to install."""
    try:
        _main()
    except KeyboardInterrupt:  # also while it imports libraries
        with contextlib.suppress(OSError):
            sys.stderr.write("typeless: interrupted\n")
        sys.exit(130)


def _main() -> None:
    # OpenBLAS reads this when NumPy is imported. Nothing here multiplies large matrices with NumPy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # gRPC would print its own line above our error message.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _replace_closed_streams()
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


def _replace_closed_streams() -> None:
    """Replace a closed standard output or error, which Python would ignore.

    Writing to the output then raises OSError, as on a full disk. The free descriptors below 3 are taken: else a socket
    would get one, and libraries in C would write their messages into it.
    """
    while (number := os.open(os.devnull, os.O_RDONLY)) < 3:
        pass
    if sys.stdout is None:
        # Not open for writing.
        sys.stdout = io.TextIOWrapper(io.FileIO(number, "w"), encoding="utf-8", write_through=True)
    else:
        os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
