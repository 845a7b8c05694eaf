"""Fuzzes all targets in turn, and prints what was tried. Fails if an input is found that must not happen.

python -m tests.fuzz SECONDS AT_ONCE [TARGET...]

What is found is left in tests/fuzz/found/TARGET, where `tests/fuzz/test_found.py` tries it from then on.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.harness import REPOSITORY

HERE = Path(__file__).parent
FOUND = HERE / "found"
# What earlier runs learned.
CORPUS = REPOSITORY / ".cache" / "fuzz"
GRACE_S = 300.0
SHOWN_LINES = 25
_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_MEMORY = re.compile(r"stat::peak_rss_mb:\s*(\d+)")


@dataclass(frozen=True)
class Outcome:
    """The run of one target. problem: the end of its output, if it ended by an input; found: that input."""

    name: str
    n_executions: int
    n_edges: int
    n_features: int
    n_inputs: int
    memory_mb: int
    seconds: float
    found: tuple[str, ...]
    problem: str


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem != "__init__")


def fuzzed(name: str, seconds: float) -> Outcome:
    """Fuzz one target in a process of its own."""
    artifacts = FOUND / name
    before = set(artifacts.glob("*")) if artifacts.is_dir() else set()
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.run", name, str(max(1, round(seconds))), CORPUS / name, artifacts]
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE_S
        )
        # A traceback of ours is in the first, what libFuzzer says in the second.
        last = [*done.stdout.splitlines()[-SHOWN_LINES:], *done.stderr.splitlines()[-SHOWN_LINES:]]
        output, is_good = done.stdout + done.stderr, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, is_good, last = str(error), False, [str(error)]
    found = sorted(str(path.relative_to(REPOSITORY)) for path in set(artifacts.glob("*")) - before)
    if not any(artifacts.iterdir()):
        artifacts.rmdir()
    status = [*_STATUS.findall(output), ("0", "0", "0")][-2 if _STATUS.search(output) else 0]
    edges, features, inputs = map(int, status)
    return Outcome(
        name=name,
        n_executions=int((_EXECUTED.findall(output) or ["0"])[-1]),
        n_edges=edges,
        n_features=features,
        n_inputs=inputs,
        memory_mb=int((_MEMORY.findall(output) or ["0"])[-1]),
        seconds=time.monotonic() - began_s,
        found=tuple(found),
        problem="" if is_good and not found else "\n".join(line for line in last if not line.startswith("INFO: ")),
    )


def main(seconds: float, names: list[str], n_at_once: int) -> int:
    """Print a table; return the exit status."""
    if importlib.util.find_spec("atheris") is None:
        print(
            "not fuzzed: atheris has no wheel for this machine; tests/fuzz/test_found.py tries the seeds",
            file=sys.stderr,
        )
        return 0
    print("| target | executions | edges | features | corpus | MB | s | found |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with ThreadPoolExecutor(n_at_once) as threads:
        outcomes = []
        for outcome in threads.map(lambda name: fuzzed(name, seconds), names):
            outcomes.append(outcome)
            numbers = (outcome.n_executions, outcome.n_edges, outcome.n_features, outcome.n_inputs, outcome.memory_mb)
            shown = " | ".join(f"{number:,}" for number in (*numbers, round(outcome.seconds)))
            print(f"| {outcome.name} | {shown} | {', '.join(outcome.found) or '-'} |", flush=True)
    print(f"{sum(one.n_executions for one in outcomes):,} executions")
    for outcome in outcomes:
        if outcome.problem:
            print(f"\n{outcome.name}:\n{outcome.problem}", file=sys.stderr)
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[3:] or targets(), int(sys.argv[2])))
