"""Prints for all commands: errors as one line, bars and colours only on a terminal, documented exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from typeless_grpc.cli.files import is_pipe, name_of, size_of
from typeless_grpc.errors import TypelessError

# 0 is success; 2 is click's, for an invalid command line.
EXIT_FAILED = 1

MIN_TABLE_WIDTH = 64
MAX_TABLE_WIDTH = 10_000

errors = Console(stderr=True, highlight=False, emoji=False)


def complain(text: str, *, style: str | None = None) -> None:
    """Print a line to stderr, in a style on a terminal. A stderr that cannot be written is ignored."""
    with suppress(OSError, ValueError, AttributeError):  # full, closed, or missing
        errors.print(text, style=style if errors.is_terminal else None, soft_wrap=True, markup=False)


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with code 1."""
    complain(f"typeless: {message}", style="red")
    raise typer.Exit(EXIT_FAILED)


def need(option: str, is_met: bool, what: str) -> None:
    """Refuse an option that would have no effect. Raises typer.BadParameter."""
    if not is_met:
        raise typer.BadParameter(f"needs {what}", param_hint=option)


def drop_stdout() -> None:
    """Discard buffered output, which Python would try to write at exit."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def failures_as_lines() -> Iterator[None]:
    """Turn our own errors into a line. Any other exception is a bug and keeps its traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("typeless_grpc"):
            raise
        fail(f"this command needs the server's libraries ({error.name}): pip install 'typeless-grpc[server]'")
    except TypelessError as error:
        fail(f"{error.message.removesuffix('.')} ({error.reason})")


def print_table(table: Table, *, min_width: int = MIN_TABLE_WIDTH, to_stderr: bool = False) -> None:
    """Print a table without cutting it: a pipe has no width, and a narrow terminal wraps lines itself."""
    console = Console(stderr=to_stderr, highlight=False, emoji=False)
    width = max(console.width, min_width) if console.is_terminal else MAX_TABLE_WIDTH
    # A table on stderr only repeats what was printed already.
    with suppress(OSError) if to_stderr else nullcontext():
        Console(stderr=to_stderr, highlight=False, emoji=False, width=width).print(table, soft_wrap=False)


@contextmanager
def download_bar(title: str) -> Iterator[Progress]:
    """Show a progress bar of bytes, on a terminal only."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        bar.add_task(title, total=None)
        yield bar


def working(title: str) -> Progress:
    """Show a spinner while something runs, on a terminal only."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    bar = Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
    bar.add_task(title, total=None)
    return bar


class Counting:
    """Shows the files in work, and how many are done; only on a terminal."""

    def __init__(self, files: Sequence[Path]) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
        self._n_files, self._n_done = len(files), 0
        self._total = self._bar.add_task(self._total_title(), total=None, visible=len(files) > 1)

    @contextmanager
    def files(self, files: Sequence[Path]) -> Iterator[None]:
        """Show these files until the block ends, and then count them as done."""
        lines = [self._bar.add_task(_title(file), total=None) for file in files]
        try:
            yield
        finally:
            for line in lines:
                self._bar.remove_task(line)
            self._n_done += len(files)
            self._bar.update(self._total, description=self._total_title())

    def _total_title(self) -> str:
        return f"{self._n_done} of {self._n_files} files"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _title(file: Path) -> str:
    return name_of(file) if is_pipe(file) else f"{name_of(file)} ({size_of(file) // 1024:,} KiB)"
