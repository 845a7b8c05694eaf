"""A deploy that replaces one process after the other: callers notice nothing while both versions run side by side."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.installation import ENGINES, SERVERS, WORKERS, Installation
from tests.cluster.load import Load, Numbers, uninterrupted
from tests.cluster.test_faults import N_SLOTS, summary
from tests.harness import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

# There is no release yet: the first version whose stored sessions have a format number.
FIRST = "8a455ff"
STREAM_S = 60


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with the product of the last release, and these tests."""
    git = ["git", "-C", str(REPOSITORY)]
    tag = subprocess.run([*git, "describe", "--tags", "--abbrev=0"], capture_output=True, text=True, check=False)
    version = tag.stdout.strip() or FIRST
    packed = subprocess.run([*git, "archive", version, "typeless_grpc"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=packed, check=True)
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    return tmp_path


def test_a_deploy_replaces_one_process_after_the_other(
    installation: Installation, numbers: Numbers, measured: list[str], old: Path
):
    expected = uninterrupted(installation, STREAM_S)
    names = (*ENGINES, *WORKERS, *SERVERS)
    for name in names:
        node = installation.nodes[name]
        node.stop()
        node.code = old
        node.start()
    installation.until_well()
    with Load(installation, numbers, expected, STREAM_S) as load:
        for name in names:
            installation.nodes[name].code = None
            installation.stop_one(name)
            installation.restart(name)
            installation.until_well()
        seen = load.finish()
    measured.append(summary("deploy", seen))
    # The first version does not hand streams over: another server begins where it has cut them.
    load.check(n_repeats=2 * N_SLOTS, may_cut=True)
    assert not seen.failures_with_retries, [str(one) for one in seen.failures_with_retries]
