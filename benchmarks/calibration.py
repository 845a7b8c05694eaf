"""Calibration of word confidences: of the words with confidence 0.9, nine in ten should be right."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator

import jiwer

from benchmarks.contestants import RAW
from benchmarks.recordings import Recording
from typeless_grpc.client import Client, Options

EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def table(client: Client, recordings: list[Recording]) -> Iterator[str]:
    """The table, in Markdown."""
    print("confidence", file=sys.stderr, flush=True)
    aligned = [pair for one in recordings for pair in _aligned(client, one)]
    yield "\n## Confidence of words\n"
    yield f"{len(aligned)} words of {len(recordings)} English utterances, aligned with the reference.\n"
    yield "| confidence | words | mean confidence | right |"
    yield "| --- | --- | --- | --- |"
    gap = 0.0
    for low, high in itertools.pairwise(EDGES):
        inside = [(score, right) for score, right in aligned if low <= score < high or (high == 1.0 and score == 1.0)]
        if not inside:
            continue
        mean, share = (sum(column) / len(inside) for column in zip(*inside, strict=True))
        gap += abs(mean - share) * len(inside) / len(aligned)
        yield f"| {low:.2f} to {high:.2f} | {len(inside)} | {mean:.2f} | {share:.2f} |"
    yield f"\nExpected calibration error: {gap:.3f}."


def _aligned(client: Client, recording: Recording) -> Iterator[tuple[float, bool]]:
    """Each word's confidence, and whether the reference has the same word there."""
    options = Options(language=recording.language, beam_size=1, word_timestamps=True)
    transcript = client.transcribe(recording.pcm, options, raw_format=RAW, timeout_s=600).transcript
    words = [(_plain(word.text), word.confidence) for segment in transcript.segments for word in segment.words]
    words = [(text, confidence) for text, confidence in words if text]
    expected = [plain for word in recording.reference.split() if (plain := _plain(word))]
    if not words or not expected:
        return
    found = jiwer.process_words([" ".join(expected)], [" ".join(text for text, _ in words)])
    right = {
        index
        for chunk in found.alignments[0]
        if chunk.type == "equal"
        for index in range(chunk.hyp_start_idx, chunk.hyp_end_idx)
    }
    yield from ((confidence, index in right) for index, (_, confidence) in enumerate(words))


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())
