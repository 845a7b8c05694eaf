"""The arguments that benchmarks share, and the tables they print."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("faster-whisper", "ctranslate2", "grpcio", "onnxruntime", "numpy")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """--model, --recordings, --utterances, --rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="a name of the catalogue (default: base)")
    parser.add_argument(
        "--recordings", type=Path, default=Path("../shared/audio"), help="directory with manifest.jsonl"
    )
    parser.add_argument("--utterances", type=int, default=40, help="number of short recordings (default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    return parser


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], model: str) -> None:
    """Print a table in Markdown, ready for docs/."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"\n## {title}\n")
    print(f"Model {model}, int8, beam 1, language given; {os.cpu_count()} cores ({platform.machine()}), Python")
    print(f"{platform.python_version()}, {versions}. Medians of interleaved rounds.\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
