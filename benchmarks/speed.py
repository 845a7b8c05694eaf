"""Short utterances alone and from eight callers, and a long recording: our server against faster-whisper.

python -m benchmarks.speed --model base --recordings ../shared/audio
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.contestants import FasterWhisper, FasterWhisperBatched, server
from benchmarks.recordings import Recording, is_short_english, load, sample
from benchmarks.report import arguments, print_table
from benchmarks.rounds import COLUMNS, compare

WHAT = ("short", "callers", "long")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparisons and print one table."""
    parser = arguments(__doc__)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    asked = parser.parse_args(argv)
    rows = list(run(asked))
    print_table("Speed", COLUMNS, rows, asked.model)


def run(asked: argparse.Namespace) -> list[list[str]]:
    """A row for each comparison."""
    recordings = load(asked.recordings)
    short = sample([recording for recording in recordings if is_short_english(recording)], asked.utterances)
    rows = []
    with server(asked.model) as ours:
        if "short" in asked.what:
            outcome = compare(ours, FasterWhisper(asked.model), short, n_rounds=asked.rounds)
            rows.append(outcome.row(f"{len(short)} utterances, {_seconds(short):.0f} s, one at a time"))
        if "callers" in asked.what:
            outcome = compare(ours, FasterWhisper(asked.model), short, n_rounds=asked.rounds, n_callers=8)
            rows.append(outcome.row("the same from 8 callers"))
        if "long" in asked.what:
            for recording in [one for one in recordings if one.kind == "long"]:
                outcome = compare(ours, FasterWhisperBatched(asked.model), [recording], n_rounds=asked.rounds)
                rows.append(outcome.row(f"{recording.path.stem}, {recording.audio_s:.0f} s"))
    return rows


def _seconds(recordings: Sequence[Recording]) -> float:
    return sum(recording.audio_s for recording in recordings)


if __name__ == "__main__":
    main()
