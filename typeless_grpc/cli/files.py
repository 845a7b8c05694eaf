"""Which recordings a command line means, and what the files are called that are written for them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

# What is taken from a directory; a file that is named is taken whatever it is called.
_NAMES = "3gp aac aif aiff amr au caf flac m4a m4b mka mkv mov mp3 mp4 mpga oga ogg opus wav weba webm wma"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())


def recordings(patterns: Sequence[str]) -> list[Path]:
    """Files as they are named, those in directories, at any depth, and those that match patterns; each once.

    Raises typer.BadParameter for one that names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file())
        if not files:
            raise typer.BadParameter(f"there is no recording '{pattern}'", param_hint="FILES")
        found.update(dict.fromkeys(files))
    return list(found)


def stems(files: Sequence[Path]) -> list[str]:
    """A name for each recording's output: its own without suffix; with it, or with a number, where two would be one."""
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
