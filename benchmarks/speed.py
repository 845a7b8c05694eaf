"""Speed against faster-whisper: short utterances from one and from eight callers, and long recordings.

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
    """Run the comparisons and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    settings = parser.parse_args(argv)
    rows = list(run(settings))
    print_table("Speed", COLUMNS, rows, settings.model)


def run(settings: argparse.Namespace) -> list[list[str]]:
    """A row for each comparison."""
    recordings = load(settings.recordings)
    short = sample([recording for recording in recordings if is_short_english(recording)], settings.utterances)
    rows = []
    with server(settings.model) as ours:
        if "short" in settings.what:
            outcome = compare(ours, FasterWhisper(settings.model), short, n_rounds=settings.rounds)
            rows.append(outcome.row(f"{len(short)} utterances, {_seconds(short):.0f} s, one at a time"))
        if "callers" in settings.what:
            outcome = compare(ours, FasterWhisper(settings.model), short, n_rounds=settings.rounds, n_callers=8)
            rows.append(outcome.row("the same from 8 callers"))
        if "long" in settings.what:
            for recording in [one for one in recordings if one.kind == "long"]:
                outcome = compare(ours, FasterWhisperBatched(settings.model), [recording], n_rounds=settings.rounds)
                rows.append(outcome.row(f"{recording.path.stem}, {recording.audio_s:.0f} s"))
    return rows


def _seconds(recordings: Sequence[Recording]) -> float:
    return sum(recording.audio_s for recording in recordings)


if __name__ == "__main__":
    main()
