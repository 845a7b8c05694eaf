"""Long recordings through StreamTranscribe in FILE mode and through Transcribe, alternately.

    python -m benchmarks.file

It reports the seconds and the word errors of each, the number of progress events, the longest time between two of
them, and whether the fraction ever fell.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks.contestants import RAW, server
from benchmarks.recordings import Recording, load, wer
from benchmarks.report import arguments, print_table
from typeless_grpc.client import AsyncClient, Options, StreamOptions

MESSAGE_BYTES = 1 << 16
COLUMNS = ["recording", "Transcribe s", "FILE s", "times as fast", "WER %", "FILE WER %", "progress events"]
ENGLISH = Options(language="en")


@dataclass(frozen=True)
class Streamed:
    """One recording in FILE mode. fractions: (seconds since the start, fraction) of each progress event."""

    took_s: float
    text: str
    fractions: Sequence[tuple[float, float]]

    @property
    def progress(self) -> str:
        """For the table."""
        times = [0.0, *(at_s for at_s, _ in self.fractions), self.took_s]
        longest_s = max(after - before for before, after in itertools.pairwise(times))
        falls = any(after[1] < before[1] for before, after in itertools.pairwise(self.fractions))
        return f"{len(self.fractions)}, at most {longest_s:.2f} s apart, {'falls' if falls else 'never falls'}"


async def streamed(client: AsyncClient, recording: Recording) -> Streamed:
    """Stream a recording as fast as the server takes it."""
    began_s = time.perf_counter()
    fractions, text = [], ""

    async def messages() -> AsyncIterator[bytes]:
        for start in range(0, len(recording.pcm), MESSAGE_BYTES):
            yield recording.pcm[start : start + MESSAGE_BYTES]

    async for event in client.stream(messages(), StreamOptions(ENGLISH, RAW, mode="file")):
        if event.HasField("progress"):
            fractions.append((time.perf_counter() - began_s, event.progress.fraction))
        elif event.HasField("completed"):
            text = event.completed.transcript.text
    return Streamed(time.perf_counter() - began_s, text, fractions)


async def compared(client: AsyncClient, recording: Recording, n_rounds: int) -> list[str]:
    """A row for one recording."""
    whole_s, rounds, text = [], [], ""
    for _ in range(n_rounds):
        began_s = time.perf_counter()
        response = await client.transcribe(recording.pcm, ENGLISH, raw_format=RAW, timeout_s=1800)
        text = response.transcript.text
        whole_s.append(time.perf_counter() - began_s)
        rounds.append(await streamed(client, recording))
    ratio = statistics.median(whole / file.took_s for whole, file in zip(whole_s, rounds, strict=True))
    return [
        f"{recording.path.stem}, {recording.audio_s:.0f} s",
        f"{statistics.median(whole_s):.1f}",
        f"{statistics.median(file.took_s for file in rounds):.1f}",
        f"**{ratio:.2f}**",
        f"{100 * wer([(recording, text)]):.1f}",
        f"{100 * wer([(recording, rounds[-1].text)]):.1f}",
        rounds[-1].progress,
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    settings = arguments(__doc__).parse_args(argv)
    longs = load(settings.recordings, lambda one: one.kind == "long")

    async def rows(target: str) -> list[list[str]]:
        async with AsyncClient(target) as client:
            return [await compared(client, one, settings.rounds) for one in longs]

    with server(settings.model) as ours:
        print_table("Recordings as streams", COLUMNS, asyncio.run(rows(ours.target)), settings.model)


if __name__ == "__main__":
    main()
