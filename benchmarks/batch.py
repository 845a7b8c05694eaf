"""A batch of ten recordings against ten concurrent calls.

python -m benchmarks.batch --model base --recordings ../shared/audio
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.contestants import RAW, server
from benchmarks.recordings import Recording, is_short_english, load, sample
from benchmarks.report import arguments
from typeless_grpc.client import AsyncClient, Options

N_ITEMS = 10
OPTIONS = Options(language="en", beam_size=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run both alternately and print the medians."""
    settings = arguments(__doc__).parse_args(argv)
    recordings = sample([one for one in load(settings.recordings) if is_short_english(one)], N_ITEMS)
    with server(settings.model) as ours:
        asyncio.run(_compare(ours.target, recordings, settings.rounds))


async def _compare(target: str, recordings: Sequence[Recording], n_rounds: int) -> None:
    audio_s = sum(one.audio_s for one in recordings)
    async with AsyncClient(target) as client:
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "batch": lambda: _batch(client, recordings),
            "calls": lambda: _calls(client, recordings),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(n_rounds):
            for name, run in ways.items():
                began_s = time.perf_counter()
                await run()
                took[name].append(time.perf_counter() - began_s)
    batch_s, calls_s = statistics.median(took["batch"]), statistics.median(took["calls"])
    print(f"{N_ITEMS} recordings, {audio_s:.0f} s of speech: one batch {batch_s:.2f} s, concurrent calls")
    print(f"{calls_s:.2f} s: {batch_s / calls_s:.2f} times. Medians of {n_rounds} interleaved rounds.")


async def _calls(client: AsyncClient, recordings: Sequence[Recording]) -> None:
    await asyncio.gather(*(client.transcribe(one.pcm, OPTIONS, raw_format=RAW, timeout_s=600) for one in recordings))


async def _batch(client: AsyncClient, recordings: Sequence[Recording]) -> None:
    answer = await client.batch([one.pcm for one in recordings], OPTIONS, raw_format=RAW, timeout_s=600)
    assert answer.summary.succeeded == len(recordings), answer.summary


if __name__ == "__main__":
    main()
