"""The parts of `make hardening` that other suites run: fuzzing, hostile peers, faults, models of the state."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.hardening.report import Row, Table
from tests.harness import REPOSITORY

FUZZ_EXECUTIONS, FUZZ_S = 1_000_000, 60.0  # in all; of each target
WIRE_S = 300.0
NO_TESTS = 5  # pytest's status if it finds none


def fuzz(scale: float) -> Table:
    """Fuzz every reader of bytes from outside."""
    seconds = max(1.0, scale * FUZZ_S)
    status, output = _run("-m", "tests.fuzz", f"{seconds:.0f}", str(os.cpu_count() or 1))
    found = re.findall(r"^([\d,]+) executions$", output, re.M)
    n = int(found[-1].replace(",", "")) if found else 0
    wanted = round(FUZZ_EXECUTIONS * min(1.0, scale))
    return Table(
        "Fuzzing",
        [
            Row("Inputs tried", f"{n:,}", f"at least {wanted:,}", n >= wanted),
            Row("Crashes, hangs and leaks", "none" if not status else "some: see the output", "none", not status),
        ],
    )


def wire(scale: float) -> Table:
    """Call the server as hostile peers do. The suite prints its figures as a line of JSON."""
    if not (REPOSITORY / "tests" / "wire" / "__main__.py").exists():
        return Table("Hostile peers", [])
    status, output = _run("-m", "tests.wire", str(max(20.0, scale * WIRE_S)))
    lines = [line for line in output.splitlines() if line.startswith("{")]
    figures: dict[str, object] = json.loads(lines[-1]) if lines else {}
    rows = [
        Row(name.replace("_", " ").capitalize(), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in figures.items()
    ]
    return Table("Hostile peers", [*rows, Row("Trials that failed", "some" if status else "none", "none", not status)])


def faults(scale: float) -> Table:
    """Run the tests of faults that take minutes."""
    options = ("-q", "-p", "no:cacheprovider", "-m", "hardening", "tests/faults")
    status, output = _run("-m", "pytest", *options, environment={"SCALE": str(scale)})
    if status == NO_TESTS:
        return Table("Faults that take minutes", [])
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|error)", output)}
    row = Row("Tests passed", str(counts.get("passed", 0)), f"all {sum(counts.values())}", not status)
    return Table("Faults that take minutes", [row])


def states(scale: float) -> Table:
    """Try the models of the state, and the schedules, many times as often as CI does. pytest prints the figures."""
    options = ("-q", "-p", "no:cacheprovider", "--hypothesis-profile=hardening", "-k", "not planted and not is_found")
    status, output = _run("-m", "pytest", *options, "tests/states", environment={"SCALE": str(scale)})
    lines = [line for line in output.splitlines() if line.startswith('{"states"')]
    figures: dict[str, int] = json.loads(lines[-1])["states"] if lines else {}
    rows = [Row(f"{name.capitalize()} tried", f"{value:,}") for name, value in figures.items()]
    return Table(
        "Models of the state", [*rows, Row("Sequences that failed", "some" if status else "none", "none", not status)]
    )


def _run(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run Python; return the exit status and the output, which is shown as well."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(REPOSITORY),
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)
