"""How commands speak: errors as one readable line, bars and colours on a terminal only, documented exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from typeless_grpc.errors import TypelessError

# 0 is success, 2 is a command line that makes no sense (click's own).
EXIT_FAILED = 1

errors = Console(stderr=True, highlight=False)


def fail(message: str) -> NoReturn:
    """Print one line to stderr and stop with exit code 1."""
    errors.print(f"typeless: {message}", style="red" if errors.is_terminal else None, soft_wrap=True, markup=False)
    raise typer.Exit(EXIT_FAILED)


@contextmanager
def failures_as_lines() -> Iterator[None]:
    """Turn what we raise on purpose into a line; anything else is a bug and keeps its traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("typeless_grpc"):
            raise
        fail(f"this needs the server's libraries ({error.name}): pip install 'typeless-grpc[server]'")
    except TypelessError as error:
        fail(f"{error.message} ({error.reason})")


@contextmanager
def download_bar(title: str) -> Iterator[Progress]:
    """A bar of bytes on a terminal, nothing in a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        bar.add_task(title, total=None)
        yield bar
