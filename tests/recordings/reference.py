"""How many words faster-whisper gets wrong in the shared recordings, measured once for each version of it.

`python -m tests.recordings.reference FOLDER` measures anew and rewrites `faster_whisper.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

from tests.conftest import Recordings
from typeless_grpc.app.models import catalog
from typeless_grpc.config import Settings

MODEL = "tiny.en"
FILE = Path(__file__).with_name("faster_whisper.json")
normalized = EnglishTextNormalizer()


def compared(recordings: Recordings) -> list[dict[str, Any]]:
    """Return all rows of the corpus: over fewer, half a point is a few words, and says nothing."""
    return [row for row in recordings.rows("speech") if (row["language"], row["ref_quality"]) == ("en", "corpus")]


def n_errors(reference: str, text: str) -> int:
    """Count words that are wrong, missing or added."""
    words = jiwer.process_words(normalized(reference), normalized(text))
    return words.substitutions + words.deletions + words.insertions


def n_words(rows: Sequence[Mapping[str, Any]]) -> int:
    """Count the words that were spoken."""
    return sum(len(normalized(row["reference"]).split()) for row in rows)


def versions() -> dict[str, str]:
    """Return what the text depends on besides the recording."""
    return {name: version(name) for name in ("faster-whisper", "ctranslate2")} | {"model": f"{MODEL}, int8, beam 1"}


def reference_errors(recordings: Recordings, rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many words faster-whisper gets wrong: as recorded for this version, else measured now (minutes)."""
    recorded = json.loads(FILE.read_text("utf-8"))
    if recorded["versions"] == versions() and all(row["file"] in recorded["errors"] for row in rows):
        return sum(recorded["errors"][row["file"]] for row in rows)
    return sum(measure(recordings, rows).values())


def measure(recordings: Recordings, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Transcribe with faster-whisper, and count the wrong words of each recording."""
    import faster_whisper

    directory = catalog(Settings()).find(MODEL)
    model = faster_whisper.WhisperModel(str(directory), device="cpu", compute_type="int8")

    def text(file: str) -> str:
        segments, _ = model.transcribe(str(recordings.folder / file), language="en", beam_size=1)
        return " ".join(segment.text for segment in segments)

    return {row["file"]: n_errors(row["reference"], text(row["file"])) for row in rows}


if __name__ == "__main__":
    shared = Recordings(Path(sys.argv[1]))
    errors = measure(shared, compared(shared))
    FILE.write_text(json.dumps({"versions": versions(), "errors": errors}, indent=1) + "\n", "utf-8")
