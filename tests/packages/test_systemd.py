"""The systemd unit: systemd's own check, and its measure of what the service could still reach."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.harness import REPOSITORY
from typeless_grpc.config import Settings

pytestmark = pytest.mark.packages
UNIT = REPOSITORY / "deploy/systemd/typeless.service"
MAX_EXPOSURE = 2.0  # of 10; systemd calls less than 2.3 "OK", and an ordinary service has 9.6


def test_the_unit_is_sandboxed():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"Overall exposure level for typeless.service: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE
    assert (
        "Unknown" not in done.stderr
    )  # a key that systemd does not know is ignored, and with it what it should forbid


def test_a_stop_waits_longer_than_the_drain():
    text = UNIT.read_text("utf-8")
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert float(stop_s) > Settings().drain_timeout_s
    assert "KillSignal=SIGTERM" in text
