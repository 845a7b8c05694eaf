from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from typeless_grpc.app import models
from typeless_grpc.app.cores import n_cores, shares, usable_cores
from typeless_grpc.config import Settings
from typeless_grpc.engine.device import Device

V1 = {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}
V1_OFF = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system's root with these groups of ours, and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", "utf-8")
    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "9900000 100000"}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/a.slice/b.service", {"a.slice/b.service/cpu.max": "300000 100000"}, 3),
        ("0::/a.slice/b", {"a.slice/b/cpu.max": "max 100000", "a.slice/cpu.max": "200000 100000"}, 2),
        ("0::/a.slice/b", {"a.slice/b/cpu.max": "200000 100000", "a.slice/cpu.max": "900000 100000"}, 2),
        ("0::/docker/0123", {"cpu.max": "150000 100000"}, 2),
        ("0::/../other", {"cpu.max": "150000 100000"}, 2),
        ("4:memory:/x\n3:cpu,cpuacct:/docker/0123\n0::/", {f"cpu,cpuacct/{n}": t for n, t in V1.items()}, 2),
        ("3:cpu,cpuacct:/a", {f"cpu,cpuacct/a/{n}": t for n, t in V1.items()}, 2),
        ("3:cpu:/a", {f"cpu/a/{n}": t for n, t in V1.items()}, 2),
        ("3:cpu:/a", {f"cpu/a/{n}": t for n, t in V1_OFF.items()}, 64),
        ("3:cpuset:/a", {f"cpuset/a/{n}": t for n, t in V1.items()}, 64),
        ("1:name=systemd:/\n0::/a", {"unified/a/cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        ("0::/", {"cpu.max": "1 0"}, 64),
        ("nonsense", {"cpu.max": "150000 100000"}, 64),
        ("0::/", {}, 64),
    ],
)
def test_a_quota_limits_the_number_of_cores(groups: str, files: dict[str, str], expected: int, tmp_path: Path):
    assert n_cores(tree(tmp_path, groups, files)) == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert n_cores(tmp_path) == 64
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {3, 5})
        assert n_cores(tmp_path) == 2


def test_a_quota_does_not_raise_the_number_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert n_cores(tree(tmp_path, "0::/", {"cpu.max": "400000 100000"})) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems pin nothing")
def test_neighbours_are_threads_of_one_core_and_cores_of_one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As most servers number them: the first threads of all cores, then the second ones; here with two nodes.
    for core in range(16):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}"
        (folder / "topology").mkdir(parents=True)
        (folder / f"node{core % 8 // 4}").mkdir()
        (folder / "topology/physical_package_id").write_text(f"{core % 8 // 4}\n")
        (folder / "topology/core_id").write_text(f"{core % 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)))
    assert shares(usable_cores(tmp_path), 4) == [(0, 8, 1, 9), (2, 10, 3, 11), (4, 12, 5, 13), (6, 14, 7, 15)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 3, 12})
    assert usable_cores(tmp_path) == [1, 3, 12]
    assert usable_cores(tmp_path / "unknown") == [1, 3, 12]


def test_the_engine_starts_threads_for_the_quota(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "n_cores_here", lambda: 2)
    assert models.parallelism(Settings(), Device("cpu", "int8")) == (2, 1)


LOADED = """
import os, sys
from typeless_grpc.cli.main import main
sys.argv = ["typeless", "--version"]
try:
    main()
except SystemExit:
    import typeless_grpc.app.models
    print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_library_starts_threads_when_it_is_imported():
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    loaded = subprocess.run([sys.executable, "-c", LOADED], env=kept, capture_output=True, text=True, check=True)
    assert loaded.stdout.splitlines()[-1] == "1"
