"""How many cores this process may use: those of the machine that it may run on, and no more than its quota is worth.

A container's quota (`docker run --cpus 1.5`, a limit of Kubernetes, systemd's CPUQuota) hides no core: who counts cores
alone starts 64 threads that then wait for one another most of the time. Linux keeps it in control groups, of two
versions (cgroups(7)), and the quotas of all groups around ours hold, too.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# Where the groups of the version 2, and of the controller "cpu" of version 1, are mounted: alone, and side by side.
_MOUNTS_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_MOUNTS_V1 = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpuacct,cpu")


def n_cores(root: Path = Path("/")) -> int:
    """Cores to start threads for, at least 1; a part of one counts as one. root: of the file system, for tests."""
    n_usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([n_usable, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's groups and of those around them, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            yield from _of_groups(root, _MOUNTS_V2, group, _quota_v2)
        elif "cpu" in controllers.split(","):
            yield from _of_groups(root, _MOUNTS_V1, group, _quota_v1)


def _of_groups(
    root: Path, mounts: tuple[str, ...], group: str, quota_of: Callable[[Path], float | None]
) -> Iterator[float]:
    # In a container, the group may be named as it is outside, where only its own is mounted, as the root.
    path = PurePosixPath(group.lstrip("/"))
    for mount in mounts:
        for around in (path, *path.parents):
            try:
                quota = quota_of(root / mount / around)
            except (OSError, ValueError, ZeroDivisionError):
                continue
            if quota is not None:
                yield quota


def _quota_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text("utf-8").split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text("utf-8"))
    return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text("utf-8"))
