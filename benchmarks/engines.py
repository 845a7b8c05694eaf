"""The cost of engines in processes of their own: the same calls in one process and across the boundary, alternately.

    python -m benchmarks.engines [--model base] [--rounds 20]

First the boundary alone, with a model that answers at once. Then one caller with a real model, in one process and with
one engine process of as many workers. Then eight callers, also on two engine processes. CPU seconds are of all
processes, and ratios are of sums.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import psutil

from tests import scripted_engine
from tests.harness import AUDIO
from typeless_grpc.app.engines import Connected, connected
from typeless_grpc.app.models import build_recognizer
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import DecodeOptions, Engine, Ticket
from typeless_grpc.telemetry import logs
from typeless_grpc.telemetry.metrics import Metrics

RECORDINGS = ("en_short.ogg", "en_two_sentences.flac", "en_names.ogg", "en_numbers.ogg")
CALLERS = 8
IDLE_S = 4.0
OPTIONS = DecodeOptions(language="en")


@dataclass
class Sums:
    """Seconds of all calls of one contestant: elapsed, and of CPU."""

    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    n_calls: int = 0
    each_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """An engine, and the processes that it works in."""

    name: str
    engine: Engine
    processes: Sequence[psutil.Process]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


async def one_after_another(one: Setup, audio: Sequence[Audio], sums: Sums) -> None:
    """One caller."""
    before_s = one.cpu_s()
    for samples in audio:
        began_s = time.perf_counter()
        await one.engine.transcribe(samples, OPTIONS, Ticket())
        sums.each_s.append(time.perf_counter() - began_s)
    sums.elapsed_s += sum(sums.each_s[-len(audio) :])
    sums.cpu_s += one.cpu_s() - before_s
    sums.n_calls += len(audio)


async def together(one: Setup, audio: Sequence[Audio], sums: Sums) -> None:
    """Eight callers, each with all recordings."""

    async def caller(number: int) -> None:
        for samples in [*audio[number % len(audio) :], *audio[: number % len(audio)]]:
            await one.engine.transcribe(samples, OPTIONS, Ticket(caller=str(number)))

    before_s, began_s = one.cpu_s(), time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    sums.elapsed_s += time.perf_counter() - began_s
    sums.cpu_s += one.cpu_s() - before_s
    sums.n_calls += CALLERS * len(audio)


async def boundary(n_calls: int) -> None:
    """Print what a call of 1, 5 and 30 s takes with a scripted model, here and in another process."""
    print("The boundary, with a model that answers at once")
    async with scripted_engine.built() as built, scripted_engine.group(engine_processes=1) as parts:
        contestants = [
            Setup("one process", built.recognizer, [psutil.Process()]),
            Setup("an engine process", parts.group, processes_of(parts)),
        ]
        for seconds in (1.0, 5.0, 30.0):
            audio = [scripted_engine.speech(seconds, pause_s=0.0)] * 20
            sums = {one.name: Sums() for one in contestants}
            for number in range(-1, max(1, n_calls // len(audio))):
                for one in contestants:
                    await one_after_another(one, audio, sums[one.name] if number >= 0 else Sums())
            for name, found in sums.items():
                median_ms, cpu_ms = statistics.median(found.each_s) * 1000, found.cpu_s / found.n_calls * 1000
                print(f"{seconds:4.0f} s, {name:18} {median_ms:6.2f} ms a call (median), {cpu_ms:6.2f} ms of CPU")
        idle, began_s = contestants[1], time.perf_counter()
        before_s = idle.cpu_s()
        await asyncio.sleep(IDLE_S)
        print(
            f"idle: {(idle.cpu_s() - before_s) / (time.perf_counter() - began_s) * 100:.1f} % of a core, both processes"
        )


async def group(stack: AsyncExitStack, settings: Settings) -> Connected:
    """Start engine processes, and wait for all."""
    metrics = Metrics().engine
    parts = await stack.enter_async_context(connected(settings, metrics, metrics, Reloads(settings)))
    while not all(engine.is_up for engine in parts.engines):  # noqa: ASYNC110 - no event says that all are up
        await asyncio.sleep(0.05)
    return parts


def processes_of(parts: Connected) -> list[psutil.Process]:
    return [psutil.Process(), *(psutil.Process(process.pid) for process in parts.processes)]


async def main(model: str, rounds: int) -> None:
    """Print both tables."""
    logs.configure("error", "text")
    await boundary(200)
    settings = Settings(model=model, device="cpu")
    audio = [decode((AUDIO / name).read_bytes(), AudioFormat(), DecodeLimits(60.0)).samples for name in RECORDINGS]
    seconds = [len(samples) / SAMPLE_RATE_HZ for samples in audio]
    print(f"\n{len(audio)} recordings of {min(seconds):.1f} to {max(seconds):.1f} s, {rounds} rounds, {model}")
    async with AsyncExitStack() as stack:
        built = await stack.enter_async_context(build_recognizer(settings, Metrics().engine, Reloads(settings)))
        await built.warm()
        here = Setup("one process", built.recognizer, [psutil.Process()])
        one = await group(stack, settings)
        beside = Setup("an engine process", one.group, processes_of(one))
        await compare("One caller", [here, beside], one_after_another, audio, rounds)
        two = await group(stack, settings.model_copy(update={"engine_processes": 2}))
        pair = Setup("two engine processes", two.group, processes_of(two))
        await compare(f"{CALLERS} callers", [here, beside, pair], together, audio, max(1, rounds // 4))


Work = Callable[[Setup, Sequence[Audio], Sums], Awaitable[None]]


async def compare(title: str, contestants: Sequence[Setup], work: Work, audio: Sequence[Audio], rounds: int) -> None:
    """Let each contestant do the work in turn, and print the sums and their ratios to those of the first."""
    sums = {one.name: Sums() for one in contestants}
    for number in range(-1, rounds):
        for one in contestants if number % 2 else contestants[::-1]:
            await work(one, audio, sums[one.name] if number >= 0 else Sums())  # the first round warms up
    first = sums[contestants[0].name]
    print(f"\n{title}")
    for one in contestants:
        found = sums[one.name]
        print(
            f"{one.name:22} {found.elapsed_s / found.n_calls * 1000:7.2f} ms a call,"
            f" {found.cpu_s / found.n_calls * 1000:7.2f} ms of CPU;"
            f" x{found.elapsed_s / first.elapsed_s:.3f} time, x{found.cpu_s / first.cpu_s:.3f} CPU"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--rounds", type=int, default=20)
    settings = parser.parse_args()
    asyncio.run(main(settings.model, settings.rounds))
