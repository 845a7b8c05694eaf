"""The cores that this process may use: its CPU affinity, and their number, reduced to its quota.

A container's CPU quota (`docker run --cpus 1.5`, a Kubernetes limit, systemd's CPUQuota) does not hide cores: a process
that only counts cores starts 64 threads, which then wait for one another most of the time. Linux keeps quotas in
control groups of two versions (cgroups(7)), and the quotas of all parent groups apply too.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

# Mount points of version 2, and of the controller "cpu" of version 1, if one or both are in use.
_MOUNTS_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_MOUNTS_V1 = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpuacct,cpu")


def n_cores(root: Path = Path("/")) -> int:
    """Return the number of cores, at least 1, rounded up. root: the root of the file system, for tests."""
    n_usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([n_usable, *map(math.ceil, _quotas(root))]))


def usable_cores(root: Path = Path("/")) -> list[int]:
    """Return the cores of this process's affinity, neighbours together; none on other systems than Linux.

    Threads of one physical core are next to each other, and so are the cores of one NUMA node, whatever their numbers.
    root: as for `n_cores`.
    """
    if sys.platform != "linux":
        return []
    return sorted(os.sched_getaffinity(0), key=lambda core: (*_location(root, core), core))


def _location(root: Path, core: int) -> tuple[int, int, int]:
    """Return the NUMA node, the package and the physical core of a core; 0 for what is unknown."""
    folder = root / f"sys/devices/system/cpu/cpu{core}"
    nodes = [int(node.name.removeprefix("node")) for node in folder.glob("node[0-9]*")]

    def topology(name: str) -> int:
        try:
            return int((folder / "topology" / name).read_text("utf-8"))
        except (OSError, ValueError):
            return 0

    return min(nodes, default=0), topology("physical_package_id"), topology("core_id")


def shares(cores: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Divide cores into n shares of neighbours, as equal as possible; with fewer cores than shares, some are shared."""
    if len(cores) < n:
        return [(cores[i % len(cores)],) for i in range(n)]
    bounds = [round(i * len(cores) / n) for i in range(n + 1)]
    return [tuple(cores[start:end]) for start, end in itertools.pairwise(bounds)]


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of this process's groups and of their parents, in cores."""
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
    # In a container, the group may have its name from outside, while only its own files are mounted, as the root.
    path = PurePosixPath(group.lstrip("/"))
    for mount in mounts:
        for group_path in (path, *path.parents):
            try:
                quota = quota_of(root / mount / group_path)
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
