"""Programs that tests of `deploy/` run. Where they are missing, the tests skip, but in CI they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def tool(name: str) -> str:
    """The path of a program that .ci/run installs."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:{Path.home() / 'go/bin'}")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {name}: see .ci/run")
    return str(found)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit status."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def output(*command: str | Path, **options: Any) -> str:
    """What a command prints; the test fails if the command does."""
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
