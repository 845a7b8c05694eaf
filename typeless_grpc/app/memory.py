"""How this process asks the system for memory, and how much there is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_M_ARENA_MAX = -8  # glibc's <malloc.h>
_ARENAS = 2


def share_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc.

    Unless told, it gives threads heaps of their own, up to eight for each core, and what one of them once held stays
    with it: of an upload, whose bytes pass through many threads, tens of megabytes stay behind.
    """
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still get: the machine's, or what its control group leaves; None off Linux.

    root: where the system's files are.
    """
    found = []
    with suppress(OSError, ValueError):
        found.append(_fields(root / "proc/meminfo")["MemAvailable:"] * 1024)
    for version, folder in _groups(root):
        with suppress(OSError, ValueError, KeyError):  # there is none, or it has no limit ("max")
            limit, used = (int((folder / name).read_text()) for name in (version.limit, version.used))
            found.append(limit - used + _fields(folder / "memory.stat")[version.cache])
    return max(0, min(found)) if found else None


@dataclass(frozen=True)
class _Version:
    """Files of control groups. cache: a field of memory.stat, what a group can give back of what it uses."""

    folder: str
    limit: str
    used: str
    cache: str


_VERSIONS = {
    "": _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _groups(root: Path) -> Iterator[tuple[_Version, Path]]:
    """The groups that this process is in, from the innermost to that which is the whole container or machine."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in controllers.split(","):
                if (version := _VERSIONS.get(name)) and (own := path.strip("/")):
                    top = root / version.folder
                    folder = top / own
                    while folder != top:
                        yield version, folder
                        folder = folder.parent
    yield from ((version, root / version.folder) for version in _VERSIONS.values())


def _fields(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
