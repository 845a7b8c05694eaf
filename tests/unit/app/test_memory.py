from __future__ import annotations

import gc
from pathlib import Path

import pytest

from typeless_grpc.app.memory import free_bytes, freeze_heap

MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\nHugePages_Total: 0\n"
GROUP_2 = {
    "sys/fs/cgroup/memory.max": "600000\n",
    "sys/fs/cgroup/memory.current": "500000\n",
    "sys/fs/cgroup/memory.stat": "anon 300000\ninactive_file 100000\n",
}
GROUP_1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "600000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 50000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="another system"),
        pytest.param({"proc/meminfo": MEMINFO}, 1_024_000, id="the machine's"),
        pytest.param({"proc/meminfo": MEMINFO} | GROUP_2, 200_000, id="a container's"),
        pytest.param({"proc/meminfo": MEMINFO} | GROUP_1, 150_000, id="a container's, version 1"),
        pytest.param(
            {"proc/meminfo": MEMINFO} | GROUP_2 | {"sys/fs/cgroup/memory.max": "max\n"}, 1_024_000, id="no limit"
        ),
        pytest.param(
            {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/system.slice/typeless.service\n"}
            | {name.replace("cgroup/", "cgroup/system.slice/"): text for name, text in GROUP_2.items()},
            200_000,
            id="a service's",
        ),
        pytest.param(
            {"proc/meminfo": MEMINFO, "proc/self/cgroup": "4:memory:/a/b\n2:cpu:/\n"}
            | {name.replace("memory/", "memory/a/b/", 1): text for name, text in GROUP_1.items()},
            150_000,
            id="a service's, version 1",
        ),
        pytest.param(GROUP_2 | {"sys/fs/cgroup/memory.current": "900000\n"}, 0, id="over the limit"),
    ],
)
def test_free_memory_is_the_smallest_of_all_limits(files: dict[str, str], expected: int | None, tmp_path: Path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_bytes(tmp_path) == expected


def test_a_frozen_heap_is_left_out_of_collections_and_later_garbage_is_not():
    freeze_heap()
    try:
        assert gc.get_freeze_count() > 100 * len(gc.get_objects())
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() > 0
    finally:
        gc.unfreeze()
