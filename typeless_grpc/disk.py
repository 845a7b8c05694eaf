"""Directories of this machine, and the free space of its disks."""

from __future__ import annotations

import shutil
from pathlib import Path

from typeless_grpc.errors import SourceUnavailable

PRIVATE, READABLE = 0o700, 0o755


def make_directory(directory: Path, mode: int = PRIVATE) -> None:
    """Create a directory and its missing parents with this mode, whatever the umask.

    Existing directories stay as they are. mode: PRIVATE for data of callers; READABLE for models, which other users of
    this machine may read. Nobody else may write in either. Raises OSError.
    """
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        one.mkdir(mode=mode, exist_ok=True)
    directory.mkdir(exist_ok=True)  # raises FileExistsError if it is none


def check_disk(directory: Path, n_bytes: int, min_free_percent: float) -> None:
    """Raise SourceUnavailable if n_bytes more would leave less than min_free_percent of the directory's disk free."""
    disk = _usage(directory)
    if disk is None:  # the next write will report the error
        return
    total, free = disk
    if free - n_bytes < total * min_free_percent / 100:
        message = "The storage of this server is almost full: it takes no new audio now."
        raise SourceUnavailable(message, reason="STORAGE_FULL", retry_after_s=30.0)


def free_ratio(directory: Path) -> float | None:
    """Return the free share of the directory's disk, from 0 to 1; None if the disk cannot be read."""
    total, free = _usage(directory) or (0, 0)
    return free / total if total else None


def _usage(directory: Path) -> tuple[int, int] | None:
    """Return the disk's bytes, all and free."""
    while not directory.exists():
        directory = directory.parent
    try:
        disk = shutil.disk_usage(directory)
    except OSError:
        return None
    return disk.total, disk.free
