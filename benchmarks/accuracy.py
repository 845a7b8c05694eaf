"""Accuracy of the text: against faster-whisper, by strategy, with hotwords, and the calibration of confidences.

    python -m benchmarks.accuracy --parts beside --recordings ../shared/audio
    python -m benchmarks.accuracy --parts beside --recordings ../shared/speech --split dev

Constants are chosen on the split "dev". Run "report" once, when a change is done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import beside, calibration, hotwords
from benchmarks.contestants import RAW, FasterWhisper, Server, server
from benchmarks.recordings import Recording, is_short_english, load, sample, wer
from typeless_grpc.client import Client, Options

STRATEGIES = ("auto", "whole", "fixed", "vad", "hybrid")
SPLITS = ("dev", "report")
PARTS = ("beside", "strategies", "hotwords", "confidence", "times")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="a name of the catalogue (default: base)")
    parser.add_argument("--recordings", type=Path, default=Path("../shared/audio"), help="with manifest.jsonl")
    parser.add_argument("--utterances", type=int, default=40, help="short English recordings (default: 40)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--split", choices=SPLITS, help="of a manifest with splits (default: both)")
    parser.add_argument("--languages", nargs="+", help="only these")
    parser.add_argument("--full", action="store_true", help="also compare with windows of 30 s (encoder_window = full)")
    settings = parser.parse_args(argv)
    recordings = load(
        settings.recordings,
        lambda one: (
            one.kind in {"speech", "long"}
            and settings.split in (None, one.split)
            and one.language in (settings.languages or [one.language])
        ),
    )
    print("# Accuracy\n")
    print(f"`python -m benchmarks.accuracy` on the shared recordings: model {settings.model}, int8, beam 1,")
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("faster-whisper", "ctranslate2"))
    print(
        f"{', '.join(versions)}. Errors are counted in words after Whisper's normalization, in characters for Chinese"
    )
    print("and Japanese. There are few recordings for each language: the tables compare strategies, not languages.")
    with server(settings.model) as ours, Client(ours.target) as client:
        for part in settings.parts:
            for line in _part(part, ours, client, recordings, settings):
                print(line, flush=True)


def _part(
    part: str, ours: Server, client: Client, recordings: list[Recording], settings: argparse.Namespace
) -> Iterator[str]:
    short = sample([one for one in recordings if is_short_english(one)], settings.utterances)
    if part == "beside":
        yield from _beside(ours, recordings, settings)
    elif part == "strategies":
        yield from _strategies(client, [one for one in recordings if one.language != "en" or one.kind == "long"], short)
    elif part == "hotwords":
        yield from hotwords.table(client, [one for one in recordings if is_short_english(one)])
    elif part == "confidence":
        yield from calibration.table(client, short)
    else:
        yield from _times(client, short, FasterWhisper(settings.model))


def _by_language(recordings: list[Recording]) -> dict[str, list[Recording]]:
    """Short recordings by language, and each long one on its own."""
    short = [one for one in recordings if one.kind == "speech"]
    groups = {
        language: [one for one in short if one.language == language]
        for language in sorted({one.language for one in short})
    }
    return groups | {one.path.stem: [one] for one in recordings if one.kind == "long"}


def _beside(ours: Server, recordings: list[Recording], settings: argparse.Namespace) -> Iterator[str]:
    """Every recording through our server, and through faster-whisper with its defaults."""
    of = f"{settings.recordings.name}, {settings.split}" if settings.split else settings.recordings.name
    yield "\n## Beside faster-whisper\n"
    outcomes = beside.compare(ours, FasterWhisper(settings.model), recordings)
    yield from beside.table(f"Recordings: {of}", "faster-whisper", outcomes)
    if settings.full:
        with server(settings.model, name="30 s", encoder_window="full") as full:
            yield from beside.table(
                f"Recordings: {of}, our own 30 s", full.name, beside.compare(ours, full, recordings)
            )


def text_of(client: Client, recording: Recording, options: Options) -> str:
    """The text that the server returns for a recording."""
    return client.transcribe(recording.pcm, options, raw_format=RAW, timeout_s=1800).transcript.text


def _strategies(client: Client, recordings: list[Recording], short: list[Recording]) -> Iterator[str]:
    groups = _by_language(recordings)
    groups["en, short"] = short
    yield "\n## Word error rate by language and strategy\n"
    yield "With the language given. `detected` is AUTO with the language detected.\n"
    yield "| recordings | seconds | " + " | ".join(STRATEGIES) + " | detected |"
    yield "| --- " * (len(STRATEGIES) + 3) + "|"
    for name, group in groups.items():
        _report(f"strategies: {name}")
        rates = [_rate(client, group, strategy) for strategy in STRATEGIES]
        rates.append(_rate(client, group, "auto", given=False))
        seconds = sum(one.audio_s for one in group)
        yield f"| {name} ({len(group)}) | {seconds:.0f} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |"


def _rate(client: Client, group: list[Recording], strategy: str, *, given: bool = True) -> float:
    return wer(
        (one, text_of(client, one, Options(language=one.language if given else "", beam_size=1, chunking=strategy)))
        for one in group
    )


def _times(client: Client, short: list[Recording], other: FasterWhisper) -> Iterator[str]:
    """The difference of word starts from faster-whisper's, on recordings with equal texts."""
    _report("times")
    apart = []
    for one in short:
        options = Options(language=one.language, beam_size=1, word_timestamps=True)
        transcript = client.transcribe(one.pcm, options, raw_format=RAW, timeout_s=600).transcript
        ours = [
            (word.text, word.start_offset.seconds + word.start_offset.nanos / 1e9)
            for segment in transcript.segments
            for word in segment.words
        ]
        theirs = list(other.transcribe(one, words=True).words)
        if [word for word, _ in ours] == [word for word, _ in theirs]:
            apart += [abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    quantiles = statistics.quantiles(apart, n=20)
    yield "\n## Times of words\n"
    yield f"Starts of {len(apart)} words, against faster-whisper's own where the texts are equal: median"
    yield f"{statistics.median(apart) * 1000:.0f} ms apart, 95 % within {quantiles[-1] * 1000:.0f} ms."


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
