"""The recordings of the benchmarks: a directory whose manifest.jsonl lists files, languages and reference texts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat

# Written without spaces: errors are counted in characters.
UNSPACED = {"zh", "ja", "ko"}


@dataclass(frozen=True)
class Recording:
    """One row of the manifest. split: "dev" or "report" where the rows of a manifest are split, else ""."""

    path: Path
    kind: str
    language: str
    reference: str
    ref_quality: str
    split: str = ""

    @functools.cached_property
    def audio(self) -> Audio:
        """float32, mono, 16 kHz; decoded once, so that no benchmark measures decoding."""
        return decode(self.path.read_bytes(), AudioFormat(), DecodeLimits(max_duration_s=4 * 3600)).samples

    @property
    def audio_s(self) -> float:
        """Length in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ

    @functools.cached_property
    def pcm(self) -> bytes:
        """The audio as raw signed 16-bit samples."""
        return (np.clip(self.audio, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def load(directory: Path, keep: Callable[[Recording], bool] = lambda _: True) -> list[Recording]:
    """Rows with one known language and a reference, in the order of the manifest."""
    rows = [json.loads(line) for line in (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    recordings = [
        Recording(
            directory / row["file"],
            row["kind"],
            row["language"],
            row["reference"],
            row["ref_quality"] or "",
            row.get("split") or "",
        )
        for row in rows
        if row["reference"] and row["language"] and "+" not in row["language"] and not row["file"].endswith(".raw")
    ]
    return [recording for recording in recordings if keep(recording)]


def is_short_english(recording: Recording) -> bool:
    """Utterances of a known corpus that fit one window."""
    return (
        recording.kind == "speech"
        and recording.language == "en"
        and recording.ref_quality == "corpus"
        and recording.audio_s <= 28
    )


def sample(recordings: Sequence[Recording], n: int) -> list[Recording]:
    """Choose n recordings, evenly spread, so that every source is represented."""
    step = max(1.0, len(recordings) / n)
    return [recordings[int(index * step)] for index in range(min(n, len(recordings)))]


def normalized(text: str, language: str) -> str:
    """Whisper's normalization; characters are separated if the script has no spaces."""
    if language == "en":
        return str(_english()(text))
    return str(_basic(language in UNSPACED)(text))


def word_errors(recording: Recording, text: str) -> tuple[int, int]:
    """The word errors of a text (substitutions, deletions and insertions), and the words of the reference."""
    reference, found = normalized(recording.reference, recording.language), normalized(text, recording.language)
    if not reference.strip() or not found.strip():
        return len(reference.split()), len(reference.split())
    counts = jiwer.process_words([reference], [found])
    return counts.substitutions + counts.deletions + counts.insertions, len(reference.split())


def lost_words(recording: Recording, text: str) -> int:
    """Count the words of the reference that a text leaves out."""
    reference, found = normalized(recording.reference, recording.language), normalized(text, recording.language)
    if not reference.strip() or not found.strip():
        return len(reference.split())
    return int(jiwer.process_words([reference], [found]).deletions)


def wer(pairs: Iterable[tuple[Recording, str]]) -> float:
    """Word error rate (characters for zh, ja, ko) of (recording, text) pairs, as a fraction."""
    references, texts = [], []
    for recording, text in pairs:
        if reference := normalized(recording.reference, recording.language):
            references.append(reference)
            texts.append(normalized(text, recording.language))
    return float(jiwer.wer(references, texts)) if references else 0.0


@functools.cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


@functools.cache
def _basic(split_letters: bool) -> BasicTextNormalizer:
    return BasicTextNormalizer(split_letters=split_letters)
