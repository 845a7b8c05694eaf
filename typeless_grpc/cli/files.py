"""Finds the recordings that a command line names, and names the files that are written for them.

A recording is a file, or something that can be read only once: standard input, a named pipe, the shell's `<(…)`.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

# Suffixes of recordings in a directory. A named file may have any name.
_NAMES = "3gp aac aif aiff amr au caf flac m4a m4b mka mkv mov mp3 mp4 mpga oga ogg opus wav weba webm wma"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
# The path for `-`. It is read through its open descriptor, because a socket cannot be opened by this name.
STANDARD_INPUT = Path("/dev/stdin")


def recordings(patterns: Sequence[str]) -> list[Path]:
    """List the named files, those in named directories, at any depth, and those that match patterns; each once.

    Raises typer.BadParameter for a name without any file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))  # Path.expanduser raises for an unknown user
        if pattern and os.path.isdir(path):
            files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and os.path.isfile(one))
        elif glob.has_magic(pattern) and not os.path.lexists(path):
            files = sorted(Path(one) for one in glob.glob(str(path), recursive=True) if os.path.isfile(one))
        else:
            files = [recording(pattern, "FILES")]
        if not files:
            where = "in" if os.path.isdir(path) else "that matches"
            raise typer.BadParameter(f"there is no recording {where} '{name_of(pattern)}'", param_hint="FILES")
        found.update(dict.fromkeys(files))
    return list(found)


def recording(name: str, argument: str) -> Path:
    """Return the path of one recording: a file, a pipe, or `-` for standard input. Raises typer.BadParameter."""
    path = STANDARD_INPUT if name == "-" else Path(os.path.expanduser(name))
    try:
        is_terminal = _is_terminal(path)
        is_directory = path != STANDARD_INPUT and path.is_dir()
    except FileNotFoundError as error:
        raise typer.BadParameter(f"there is no file '{name_of(name)}'", param_hint=argument) from error
    except OSError as error:
        raise typer.BadParameter(f"'{name_of(name)}' cannot be read: {error.strerror}", param_hint=argument) from error
    if is_terminal:
        what = "standard input" if path == STANDARD_INPUT else f"'{name_of(name)}'"
        raise typer.BadParameter(f"{what} is a terminal: pipe a recording into it, or name a file", param_hint=argument)
    if not name or is_directory:
        raise typer.BadParameter(f"there is no file '{name_of(name)}'", param_hint=argument)
    if path == STANDARD_INPUT:
        with suppress(OSError):  # replaced by a test
            # The parent may have made it non-blocking, and a read without data would look like its end.
            os.set_blocking(sys.stdin.fileno(), True)
    return path


def is_pipe(file: Path) -> bool:
    """Whether a file can be read only once and has no size: standard input, a pipe, a device."""
    try:
        return file == STANDARD_INPUT or not stat.S_ISREG(file.stat().st_mode)
    except OSError:  # reported when it is read
        return False


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 for a missing one, which is reported when it is read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def name_of(file: Path | str) -> str:
    """Return a file name as one line of text: escapes control characters, and bytes that are not UTF-8 as `\\xe9`."""
    text = os.fsencode(file).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_terminal(path: Path) -> bool:
    if path == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.closed:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.isatty()
    if not stat.S_ISCHR(path.stat().st_mode):
        return False
    number = os.open(path, os.O_RDONLY | os.O_NOCTTY)
    try:
        return os.isatty(number)
    finally:
        os.close(number)


def write_whole(file: Path, text: str) -> None:
    """Write a file atomically: it has the whole text, or stays as it was. Raises OSError."""
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")  # a pipe or a device: it cannot be replaced
        return
    part = file.with_name(f".{os.getpid()}.part")  # the name may have the maximum length
    try:
        part.write_text(text, encoding="utf-8")
        if file.exists():
            if not os.access(file, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            shutil.copymode(file, part)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def stems(files: Sequence[Path]) -> list[str]:
    """Return a unique name for the output of each recording: its stem, else its name, else its name with a number."""
    plain = Counter(file.stem.casefold() for file in files)
    names, taken = [], set[str]()
    for file in files:
        name = file.stem if plain[file.stem.casefold()] == 1 else file.name
        number, unique = 2, name
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        names.append(unique)
    return names
