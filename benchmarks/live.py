"""Live streams at the pace of speech: the latency of the text, and its accuracy.

    python -m benchmarks.live --streams 1 4 8 --interims

The server runs in a process of its own, and all callers in this one. Each stream is made of utterances of a known
corpus with pauses between them, sent in messages of 100 ms at the pace of speech. It reports the latency of finals,
from the last spoken sample (the last frame that the detector takes for speech) to the event, and its drift towards the
end; the latency of interims, from the first spoken sample to the first interim of the utterance; utterances without a
final; word errors; and the server's CPU and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import jiwer
import numpy as np
import psutil

from benchmarks.contestants import RAW, Server, server
from benchmarks.recordings import Recording, is_short_english, load, normalized, sample, wer
from benchmarks.report import arguments
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, SileroDetector, recording_probabilities
from typeless_grpc.client import AsyncClient, Options, StreamOptions
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse

PAUSE_S = 1.2
MESSAGE_S = 0.1
LEAD_S = 0.5
BYTES_PER_S = 2 * SAMPLE_RATE_HZ
# Whisper's normalizer removes text in parentheses as an annotation, so the same words without parentheses would count
# as errors. Recordings with parentheses in the reference are not used.
_PARENTHESIS = set("()[]")


@dataclass
class Utterance:
    """The times of one recording in a stream, and when its interim and final arrived; in seconds."""

    recording: Recording
    start_s: float
    end_s: float
    first_spoken_s: float
    last_spoken_s: float
    first_interim_s: float | None = None
    final_s: float | None = None


@dataclass
class Stream:
    """The audio that one caller sends, and the results it received."""

    utterances: list[Utterance]
    data: bytes
    texts: list[str] = field(default_factory=list)
    n_interims: int = 0
    n_unstable: int = 0


def streams_of(recordings: Sequence[Recording], n: int, audio_s: float, seed: int) -> list[Stream]:
    """n streams of at least audio_s, each in an order of its own."""
    detector = SileroDetector()
    spoken = {recording.path: _spoken(recording, detector) for recording in recordings}
    return [_stream(random.Random(seed + index), recordings, spoken, audio_s) for index in range(n)]


def _stream(
    order: random.Random, recordings: Sequence[Recording], spoken: dict[object, tuple[float, float]], audio_s: float
) -> Stream:
    parts, utterances = [bytes(int(LEAD_S * SAMPLE_RATE_HZ) * 2)], []
    at_s = LEAD_S
    shuffled = list(recordings)
    order.shuffle(shuffled)
    while at_s < audio_s:
        recording = shuffled[len(utterances) % len(shuffled)]
        first_s, last_s = spoken[recording.path]
        end_s = at_s + len(recording.pcm) / BYTES_PER_S
        utterances.append(Utterance(recording, at_s, end_s, at_s + first_s, at_s + last_s))
        pause = bytes(int(PAUSE_S * SAMPLE_RATE_HZ) * 2)
        parts += [recording.pcm, pause]
        at_s = end_s + len(pause) / BYTES_PER_S
    return Stream(utterances, b"".join(parts))


def _spoken(recording: Recording, detector: SileroDetector) -> tuple[float, float]:
    frames = np.flatnonzero(recording_probabilities(detector, recording.audio) >= 0.5)
    first, last = (int(frames[0]), int(frames[-1]) + 1) if len(frames) else (0, 0)
    return first * FRAME_SAMPLES / SAMPLE_RATE_HZ, last * FRAME_SAMPLES / SAMPLE_RATE_HZ


async def talk(target: str, stream: Stream, options: StreamOptions, delay_s: float) -> None:
    """Run one caller, from its first message to the last event."""
    await asyncio.sleep(delay_s)
    began_s = time.perf_counter()
    stable = ""

    async def speech() -> AsyncIterator[bytes]:
        step = int(MESSAGE_S * BYTES_PER_S)
        for start in range(0, len(stream.data), step):
            message = stream.data[start : start + step]
            spoken_s = began_s + (start + len(message)) / BYTES_PER_S
            await asyncio.sleep(max(0.0, spoken_s - time.perf_counter()))
            yield message

    async with AsyncClient(target) as client:
        async for event in client.stream(speech(), options):
            at_s = time.perf_counter() - began_s
            if event.HasField("interim"):
                stream.n_interims += 1
                text = event.interim.stable_text + event.interim.unstable_text
                stream.n_unstable += not text.startswith(stable)
                stable = event.interim.stable_text
                _note_interim(stream, event, at_s)
            elif event.HasField("segment"):
                stream.n_unstable += not event.segment.text.startswith(stable)
                stable = ""
                stream.texts.append(event.segment.text)
                _note_final(stream, event, at_s)


def _note_interim(stream: Stream, event: StreamTranscribeResponse, at_s: float) -> None:
    utterance = _at(stream, _seconds(event.interim.start_offset), _seconds(event.interim.end_offset))
    if utterance is not None and utterance.first_interim_s is None:
        utterance.first_interim_s = at_s


def _note_final(stream: Stream, event: StreamTranscribeResponse, at_s: float) -> None:
    utterance = _at(stream, _seconds(event.segment.start_offset), _seconds(event.segment.end_offset))
    if utterance is not None:
        utterance.final_s = at_s


def _at(stream: Stream, start_s: float, end_s: float) -> Utterance | None:
    middle_s = (start_s + end_s) / 2
    return next((u for u in stream.utterances if u.start_s - 0.6 <= middle_s <= u.end_s + 0.6), None)


def _seconds(duration: object) -> float:
    return duration.seconds + duration.nanos / 1e9  # type: ignore[attr-defined, no-any-return]


async def measure(ours: Server, streams: list[Stream], options: StreamOptions) -> dict[str, float | int]:
    """Run all streams at the same time, and summarize them."""
    before, began_s = ours.process.cpu_times(), time.perf_counter()
    peak = asyncio.create_task(_peak_memory(ours.process))
    await asyncio.gather(*(talk(ours.target, stream, options, index * 1.7) for index, stream in enumerate(streams)))
    took_s = time.perf_counter() - began_s
    after = ours.process.cpu_times()
    peak.cancel()
    cpu_s = after.user + after.system - before.user - before.system
    utterances = [utterance for stream in streams for utterance in stream.utterances]
    finals = [u.final_s - u.last_spoken_s for u in utterances if u.final_s is not None]
    interims = [u.first_interim_s - u.first_spoken_s for u in utterances if u.first_interim_s is not None]
    return {
        "streams": len(streams),
        "utterances": len(utterances),
        "missed": len(utterances) - len(finals),
        "final p50 s": _quantile(finals, 0.5),
        "final p95 s": _quantile(finals, 0.95),
        "final p50 drift s": _drift(streams),
        "first interim p50 s": _quantile(interims, 0.5),
        "first interim p95 s": _quantile(interims, 0.95),
        "with interims %": round(100 * len(interims) / len(utterances)),
        "interims": sum(stream.n_interims for stream in streams),
        "unstable prefixes": sum(stream.n_unstable for stream in streams),
        "WER %": round(100 * _wer(streams), 1),
        "CPU %": round(100 * cpu_s / took_s),
        "memory MB": round(ours.process.memory_info().rss / 1e6),
    }


def _drift(streams: Sequence[Stream]) -> float:
    """How much the median latency of finals grows from the first quarter of the streams to the last."""
    first, last = [], []
    for stream in streams:
        waits = [u.final_s - u.last_spoken_s for u in stream.utterances if u.final_s is not None]
        n = max(1, len(waits) // 4)
        first += waits[:n]
        last += waits[-n:]
    return round(_quantile(last, 0.5) - _quantile(first, 0.5), 2)


def _quantile(values: list[float], share: float) -> float:
    return round(float(np.quantile(values, share)), 2) if values else float("nan")


def _wer(streams: Sequence[Stream]) -> float:
    references = [" ".join(normalized(u.recording.reference, "en") for u in stream.utterances) for stream in streams]
    return float(jiwer.wer(references, [normalized(" ".join(stream.texts), "en") for stream in streams]))


async def _peak_memory(process: psutil.Process) -> None:
    """Print the memory every minute, so that a long run shows its growth."""
    while True:
        await asyncio.sleep(60)
        print(f"  memory {process.memory_info().rss / 1e6:.0f} MB", flush=True)


def rows(settings: argparse.Namespace) -> Iterator[dict[str, float | int]]:
    """One measurement for each number of streams."""
    known = [
        one for one in load(settings.recordings) if is_short_english(one) and not _PARENTHESIS & set(one.reference)
    ]
    recordings = sample(known, settings.utterances)
    options = StreamOptions(Options(language=settings.language), RAW, interim_results=settings.interims)
    with server(settings.model, max_streams_per_caller=str(max(settings.streams))) as ours:
        texts = {recording.path: ours.transcribe(recording).text for recording in recordings}  # this also warms up
        streams = streams_of(recordings, max(settings.streams), settings.seconds, settings.seed)
        for n in settings.streams:
            some = [Stream([*_fresh(stream.utterances)], stream.data) for stream in streams[:n]]
            row = asyncio.run(measure(ours, some, options))
            spoken = [utterance.recording for stream in some for utterance in stream.utterances]
            row["WER % of Transcribe"] = round(100 * wer((recording, texts[recording.path]) for recording in spoken), 1)
            yield row


def _fresh(utterances: Sequence[Utterance]) -> Iterator[Utterance]:
    for one in utterances:
        yield Utterance(one.recording, one.start_s, one.end_s, one.first_spoken_s, one.last_spoken_s)


def main(argv: Sequence[str] | None = None) -> None:
    """Print each row as JSON when it is measured, then a table."""
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8], help="streams at once (default: 1 4 8)")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of each stream (default: 90)")
    parser.add_argument("--interims", action="store_true", help="request interim results")
    parser.add_argument("--language", default="en", help="sent to the server; empty to detect it (default: en)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of utterances (default: 1)")
    table = []
    for row in rows(parser.parse_args(argv)):
        print(json.dumps(row), flush=True)
        table.append(row)
    print("\n| " + " | ".join(table[0]) + " |\n|" + " --- |" * len(table[0]))
    for row in table:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
