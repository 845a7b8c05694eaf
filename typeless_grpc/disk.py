"""Free space on a local disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from typeless_grpc.errors import SourceUnavailable


def check_disk(directory: Path, n_bytes: int, min_free_percent: float) -> None:
    """Raise SourceUnavailable if n_bytes more would leave less than min_free_percent of the directory's disk free."""
    while not directory.exists():
        directory = directory.parent
    try:
        disk = shutil.disk_usage(directory)
    except OSError:  # the write that follows reports what is wrong
        return
    if disk.free - n_bytes < disk.total * min_free_percent / 100:
        message = "The storage of this server is almost full: it takes no new audio now."
        raise SourceUnavailable(message, reason="STORAGE_FULL", retry_after_s=30.0)
