"""Fuzzes one target in this process, with libFuzzer and the coverage of our Python code (atheris).

python -m tests.fuzz.run TARGET SECONDS CORPUS ARTIFACTS
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType

import atheris

# Ours, and what reads the bytes for us in Python.
INSTRUMENTED = ["typeless_grpc", "google.protobuf.json_format", "jwt"]
INPUT_S = 25  # an input that takes longer is a hang
MEMORY_MB = 2048


def imported(name: str) -> ModuleType:
    """The module of a target, with the instructions of our package counted."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        return __import__(f"tests.fuzz.targets.{name}", fromlist=["one"])


def main(name: str, seconds: str, corpus: str, artifacts: str) -> None:
    """Write the seeds of the target into its corpus, and fuzz; libFuzzer ends the process."""
    logging.disable(logging.CRITICAL)
    target = imported(name)
    directory = Path(corpus)
    directory.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(target.seeds()):
        (directory / f"seed-{index}").write_bytes(seed[: target.MAX_BYTES])
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.MAX_BYTES}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
        "-seed=19",
    ]
    atheris.Setup([sys.argv[0], *options, str(directory)], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
