"""The memory of this process: how it is allocated, and how much is free."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_M_ARENA_MAX = -8  # glibc's <malloc.h>
_ARENAS = 2


def share_heaps() -> None:
    """Make all threads share two heaps if the C library is glibc.

    By default, glibc creates up to eight heaps for each core and returns little of their memory: tens of megabytes stay
    allocated after an upload whose bytes pass through many threads.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def freeze_heap() -> None:
    """Leave all objects that exist now out of garbage collections. Call it when a process is ready to serve.

    A full collection looks at every object, and imported modules are nearly all of them: it stopped all threads of a
    busy server for up to 0.23 s, every ten seconds.
    """
    gc.collect()
    gc.freeze()


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process can still allocate, in bytes; None on other systems than Linux.

    It is the machine's free memory, or less if a control group limits it. root: the root of the file system, for tests.
    """
    found = []
    with suppress(OSError, ValueError):
        found.append(_fields(root / "proc/meminfo")["MemAvailable:"] * 1024)
    for version, folder in _groups(root):
        with suppress(OSError, ValueError, KeyError):  # the file is missing, or there is no limit ("max")
            limit, used = (int((folder / name).read_text()) for name in (version.limit, version.used))
            found.append(limit - used + _fields(folder / "memory.stat")[version.cache])
    return max(0, min(found)) if found else None


@dataclass(frozen=True)
class _Version:
    """Files of control groups. cache: the field of memory.stat that counts reclaimable memory."""

    folder: str
    limit: str
    used: str
    cache: str


_VERSIONS = {
    "": _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _groups(root: Path) -> Iterator[tuple[_Version, Path]]:
    """Yield the groups of this process, from the innermost to that of the whole container or machine."""
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
