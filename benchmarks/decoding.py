"""Measures the cost of decoding in processes: time and CPU of a call and of a stream's feed, and memory.

    python -m benchmarks.decoding [--long RECORDING] [--rounds 100]

Calls in this process and in processes of their own take turns. CPU is that of all processes together.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders, sandboxed
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.sandbox.processes import DecoderProcesses, SandboxOptions

AUDIO = Path(__file__).resolve().parents[1] / "tests" / "audio"
SHORT = ("wav", "flac", "mp3", "m4a", "ogg", "webm", "wma", "aiff")
STREAMED = ("en_minute.ogg", "en_short.webm")
PAUSE_S = 0.02  # between calls: a process that waits is ready again
N_STREAMS = 16
FEEDS_PER_S = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", type=Path, help="a long recording, for the throughput")
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    with closing(DecoderProcesses(SandboxOptions())) as processes:
        began_s = time.perf_counter()
        processes.start()
        print(f"ready after {time.perf_counter() - began_s:.2f} s")
        both = {"this process": IN_PROCESS, "own process": sandboxed(processes)}
        for name in SHORT:
            data = (AUDIO / f"en_short.{name}").read_bytes()
            compare(name, both, lambda decoders, data=data: whole(data, decoders), given.rounds)  # type: ignore[misc]
        if given.long:
            long = given.long.read_bytes()
            compare(given.long.name, both, lambda decoders: whole(long, decoders), 3)
        asyncio.run(streams(both))
        asyncio.run(memory(sandboxed(processes)))


def whole(data: bytes, decoders: Decoders) -> None:
    """Decode a recording."""
    decode(data, AudioFormat(), DecodeLimits(max_duration_s=86_400), open_container=decoders.recording)


def compare(name: str, both: dict[str, Decoders], call: Callable[[Decoders], None], n_rounds: int) -> None:
    """Time calls with each of the decoders in turn."""
    took: dict[str, list[float]] = {one: [] for one in both}
    cpu_s = dict.fromkeys(both, 0.0)
    for _ in range(n_rounds):
        for one, decoders in both.items():
            before_s, began_s = used_cpu_s(), time.perf_counter()
            call(decoders)
            took[one].append(time.perf_counter() - began_s)
            time.sleep(PAUSE_S)  # it ends, is reaped, and another one starts: a part of the cost
            cpu_s[one] += used_cpu_s() - before_s
    for one, seconds in took.items():
        print(f"{name:16} {one:13} {percentiles(seconds)}  CPU {1000 * cpu_s[one] / n_rounds:6.1f} ms")


async def streams(both: dict[str, Decoders]) -> None:
    """Time the feeds of a stream, a tenth of a second of audio each."""
    for name in STREAMED:
        data = (AUDIO / name).read_bytes()
        duration_s = decode(data, AudioFormat(), DecodeLimits(max_duration_s=600)).duration_s
        n_bytes = max(1, int(len(data) / duration_s / FEEDS_PER_S))
        for one, decoders in both.items():
            took: list[float] = []
            with closing(live_reader(AudioFormat(), field="config", open_container=decoders.stream)) as reader:
                for start in range(0, len(data), n_bytes):
                    began_s = time.perf_counter()
                    async for _ in reader.feed(data[start : start + n_bytes]):
                        pass
                    took.append(time.perf_counter() - began_s)
                    await asyncio.sleep(0.005)
            print(f"{name:16} {one:13} {percentiles(took)}  a feed, first {1000 * took[0]:.1f} ms")


async def memory(decoders: Decoders) -> None:
    """Print the memory of the processes, idle and with streams."""
    await asyncio.sleep(0.5)
    print(f"memory, none at work: {pss()}")
    data = (AUDIO / "en_minute.ogg").read_bytes()
    readers = [live_reader(AudioFormat(), field="config", open_container=decoders.stream) for _ in range(N_STREAMS)]
    for reader in readers:
        async for _ in reader.feed(data[: len(data) // 2]):
            pass
    print(f"memory, {N_STREAMS} streams: {pss()}")
    for reader in readers:
        reader.close()


def percentiles(seconds: list[float]) -> str:
    """The least, the median and the 95th percentile, in milliseconds."""
    least, p50, p95 = (1000 * float(np.percentile(seconds, p)) for p in (0, 50, 95))
    return f"least {least:6.2f}  p50 {p50:7.2f}  p95 {p95:7.2f} ms"


def used_cpu_s() -> float:
    """CPU time of this process, the fork server, and the decoder processes that have ended."""
    return time.process_time() + sum(_ticks(pid) for pid in _children("self")) / 100


def pss() -> str:
    """Proportional memory of the fork server and of all decoder processes, in MiB."""
    (fork_server,) = _children("self")
    own = _children(fork_server)
    return f"fork server {_pss(fork_server):.0f} MiB, {len(own)} processes {sum(map(_pss, own)):.0f} MiB"


def _pss(pid: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def _ticks(pid: str) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[11:15]))


def _children(pid: str) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text("ascii").split()
    return found


if __name__ == "__main__":
    main()
