"""Where the shared recordings are: TYPELESS_SHARED_AUDIO, or ../shared/audio beside the repository."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Recordings:
    folder: Path

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """The manifest's rows of these kinds."""
        lines = (self.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] in kinds]

    def bytes_of(self, file: str) -> bytes:
        return (self.folder / file).read_bytes()


@pytest.fixture(scope="session")
def recordings() -> Recordings:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "audio"
    folder = Path(os.environ.get("TYPELESS_SHARED_AUDIO") or beside)
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip(f"no shared recordings in {folder}; TYPELESS_SHARED_AUDIO can name another place")
    return Recordings(folder)
