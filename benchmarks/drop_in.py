"""Riva's and Google's contracts beside our own: the same recordings, the texts, and the latency of finals.

    python -m benchmarks.drop_in --recordings ../shared/speech

Each recording goes through all contracts, one after the other, in an order that rotates. The texts of recordings and of
streams are compared with the reference and with each other. Then some recordings are streamed at the pace of speech,
followed by silence: the latency of a final is the time from the last frame of speech to its arrival, and contracts are
compared for each recording. At last, Riva's `stop_history` is set to several silences: the errors, and the latency.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from statistics import median

import numpy as np

from benchmarks.contestants import server
from benchmarks.contracts import Chunks, Contract, contracts
from benchmarks.recordings import Recording, load, lost_words, sample, word_errors
from benchmarks.report import arguments
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, SileroDetector, recording_probabilities

CHUNK_S = 0.1
BYTES_PER_S = 2 * SAMPLE_RATE_HZ
SILENCES_MS = (200, 320, 500, 800, 1500, 3000, 5000)

# What each contract gave for each recording: text, or seconds.
Texts = Mapping[str, Sequence[str]]
Seconds = Mapping[str, Sequence[float]]


def at_once(pcm: bytes) -> Chunks:
    """Return a stream of a recording, as fast as the server takes it."""

    async def chunks() -> AsyncIterator[bytes]:
        step = int(CHUNK_S * BYTES_PER_S)
        for start in range(0, len(pcm), step):
            yield pcm[start : start + step]

    return chunks


def spoken(pcm: bytes, began_s: float) -> Chunks:
    """Return a stream of a recording at the pace of speech. began_s: its start, of time.perf_counter."""

    async def chunks() -> AsyncIterator[bytes]:
        sent_s = 0.0
        async for chunk in at_once(pcm)():
            sent_s += len(chunk) / BYTES_PER_S
            await asyncio.sleep(max(0.0, began_s + sent_s - time.perf_counter()))
            yield chunk

    return chunks


async def texts(
    recordings: Sequence[Recording], calls: Mapping[str, Callable[[Recording], Awaitable[str]]]
) -> dict[str, list[str]]:
    """Return the texts that each call gave, one for each recording."""
    found: dict[str, list[str]] = {name: [] for name in calls}
    names = list(calls)
    for index, recording in enumerate(recordings):
        for name in [*names[index % len(names) :], *names[: index % len(names)]]:
            found[name].append(await calls[name](recording))
    return found


def of_recording(contract: Contract) -> Callable[[Recording], Awaitable[str]]:
    """Return a call that transcribes a whole recording."""
    return lambda recording: contract.transcribe(recording.pcm, recording.language)


def of_stream(contract: Contract, **more: int) -> Callable[[Recording], Awaitable[str]]:
    """Return a call that streams a recording. more: of `Contract.finals`."""

    async def call(recording: Recording) -> str:
        finals = contract.finals(at_once(recording.pcm), recording.language, **more)
        return " ".join([text.strip() async for text in finals])

    return call


async def latency_s(contract: Contract, recording: Recording, last_spoken_s: float, **more: int) -> float:
    """Return the seconds from the last spoken frame to the last final, in a stream at the pace of speech."""
    silence_s = more.get("stop_history_ms", 800) / 1000 + 2.0
    began_s = time.perf_counter()
    chunks = spoken(recording.pcm + bytes(int(silence_s * SAMPLE_RATE_HZ) * 2), began_s)
    arrived_s = float("nan")
    async for _ in contract.finals(chunks, recording.language, **more):
        arrived_s = time.perf_counter() - began_s
    return arrived_s - last_spoken_s


def last_spoken_s(recording: Recording, detector: SileroDetector) -> float:
    """Return where the last frame of speech ends, in seconds; 0 without speech."""
    frames = np.flatnonzero(recording_probabilities(detector, recording.audio) >= 0.5)
    return (int(frames[-1]) + 1) * FRAME_SAMPLES / SAMPLE_RATE_HZ if len(frames) else 0.0


def error_table(title: str, recordings: Sequence[Recording], found: Texts) -> None:
    """Print the word errors of each contract, and its difference to the first in points."""
    columns = ("", "words", "wrong", "%", "points more", "words left out", "texts that differ")
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|" + " --- |" * len(columns))
    base = next(iter(found.values()))
    base_wrong = 0
    for name, some in found.items():
        counts = [word_errors(recording, text) for recording, text in zip(recordings, some, strict=True)]
        wrong, n_words = (sum(column) for column in zip(*counts, strict=True))
        base_wrong = wrong if some is base else base_wrong
        points = 100 * (wrong - base_wrong) / n_words
        n_other = sum(one != other for one, other in zip(some, base, strict=True))
        lost = sum(lost_words(recording, text) for recording, text in zip(recordings, some, strict=True))
        cells = (name, n_words, wrong, f"{100 * wrong / n_words:.2f}", f"{points:+.2f}", lost, n_other)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def latency_table(title: str, found: Seconds) -> None:
    """Print the latency of each contract, and its difference to the first on the same recordings."""
    print(f"\n### {title}\n\n| | finals | median, ms | p95, ms | median difference, ms |\n|" + " --- |" * 5)
    base = next(iter(found.values()))
    for name, some in found.items():
        more = median(1000 * (one - other) for one, other in zip(some, base, strict=True))
        print(
            f"| {name} | {len(some)} | {1000 * median(some):.0f} | {1000 * np.quantile(some, 0.95):.0f} | {more:+.0f} |"
        )


async def latencies(contestants: Sequence[Contract], recordings: Sequence[Recording], rounds: int) -> Seconds:
    """Stream each recording through each contract, one at a time, in an order that rotates."""
    detector = SileroDetector()
    found: dict[str, list[float]] = {contract.name: [] for contract in contestants}
    for index, recording in enumerate([one for one in recordings for _ in range(rounds)]):
        end_s = last_spoken_s(recording, detector)
        for contract in [*contestants[index % len(contestants) :], *contestants[: index % len(contestants)]]:
            found[contract.name].append(await latency_s(contract, recording, end_s))
    return {name: some for name, some in found.items() if some}


async def silences(contract: Contract, recordings: Sequence[Recording], spoken_ones: Sequence[Recording]) -> None:
    """Print what Riva's `stop_history` does, for each silence. spoken_ones: streamed at the pace of speech."""
    options: dict[str, dict[str, int]] = {"the server's own": {}}
    options |= {f"{ms} ms": {"stop_history_ms": ms} for ms in SILENCES_MS}
    calls = {name: of_stream(contract, **more) for name, more in options.items()}
    error_table("stop_history: words", recordings, await texts(recordings, calls))
    detector = SileroDetector()
    found: dict[str, list[float]] = {name: [] for name in options}
    for recording in spoken_ones:
        end_s = last_spoken_s(recording, detector)
        waits = await asyncio.gather(*(latency_s(contract, recording, end_s, **more) for more in options.values()))
        for name, wait_s in zip(options, waits, strict=True):
            found[name].append(wait_s)
    latency_table("stop_history: latency of finals", found)


async def measure(target: str, settings: argparse.Namespace, recordings: Sequence[Recording]) -> None:
    """Print all tables."""
    some = sample([one for one in recordings if one.language == "en"], settings.utterances)
    live = sample(some, settings.spoken)
    async with contracts(target) as all_of_them:
        for contract in all_of_them:  # to warm up
            await of_recording(contract)(recordings[0])
        if "texts" in settings.tables:
            calls = {contract.name: of_recording(contract) for contract in all_of_them}
            error_table("Recordings", recordings, await texts(recordings, calls))
            calls = {contract.name: of_stream(contract) for contract in all_of_them}
            error_table("Streams", recordings, await texts(recordings, calls))
        if "latency" in settings.tables:
            latency_table("Latency of finals", await latencies(all_of_them, live, settings.rounds))
        if "silences" in settings.tables:
            (riva,) = (contract for contract in all_of_them if contract.name == "Riva")
            await silences(riva, some, live)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--spoken", type=int, default=12, help="recordings at the pace of speech (default: 12)")
    names = ("texts", "latency", "silences")
    parser.add_argument("--tables", nargs="+", choices=names, default=names, help="which tables (default: all)")
    settings = parser.parse_args(argv)
    is_english = settings.model.endswith(".en")
    recordings = load(
        settings.recordings,
        lambda one: one.kind == "speech" and one.split in ("dev", "") and (one.language == "en" or not is_english),
    )
    with server(settings.model, max_streams_per_caller="16") as ours:
        asyncio.run(measure(ours.target, settings, recordings))


if __name__ == "__main__":
    main()
