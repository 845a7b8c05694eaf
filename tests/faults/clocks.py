"""The wall clock of a process, set while it runs (libfaketime); its monotonic clock goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

READ_S = 1.1  # the library reads the offset once a second


class ClockOf:
    """The wall clock of the processes that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        """directory: for the file with the offset."""
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not found:
            pytest.skip("libfaketime is not installed: apt-get install faketime")
        self._file = directory / "clock"
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        self.step_to(0)

    def step_to(self, offset_s: int) -> None:
        """Set the clock so far ahead of this process's clock; below 0, behind it."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{offset_s:+d}\n")
        beside.chmod(0o644)
        beside.replace(self._file)
        time.sleep(READ_S)
