"""Resources besides the model's work: CPU of gRPC and scheduling, CPU of an idle server, memory with many callers.

python -m benchmarks.resources --model base --recordings ../shared/audio --calls 2000
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.contestants import Server, server
from benchmarks.recordings import Recording, is_short_english, load, sample
from benchmarks.report import arguments, print_table

WHAT = ("overhead", "idle", "memory")
COLUMNS = ["what", "measured", "limit"]
IDLE_S = 10.0
N_CALLERS = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = arguments(__doc__)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--calls", type=int, default=2000, help="calls during which memory must not grow")
    settings = parser.parse_args(argv)
    print_table("Resources", COLUMNS, list(run(settings)), settings.model)


def run(settings: argparse.Namespace) -> list[list[str]]:
    """A row for each thing measured."""
    short = sample([one for one in load(settings.recordings) if is_short_english(one)], settings.utterances)
    rows = []
    if "overhead" in settings.what:
        rows.append(_overhead(settings.model, short))
    if "idle" in settings.what:
        rows.append(_idle(settings.model))
    if "memory" in settings.what:
        rows += _memory(settings.model, short, settings.calls)
    return rows


def _overhead(model: str, recordings: Sequence[Recording]) -> list[str]:
    """Compare with a server whose engine returns at once: gRPC, audio decoding and queueing are left."""
    with server(model) as real:
        real_s = _cpu_s(real, recordings)
    with server(model, module="benchmarks.scripted_server") as scripted:
        scripted_s = _cpu_s(scripted, recordings)
    return ["CPU of a call outside of the engine", f"{100 * scripted_s / real_s:.1f} %", "under 5 %"]


def _cpu_s(contestant: Server, recordings: Sequence[Recording]) -> float:
    contestant.transcribe(recordings[0])
    before_s = _used_s(contestant.process)
    for recording in recordings:
        contestant.transcribe(recording)
    return _used_s(contestant.process) - before_s


def _idle(model: str) -> list[str]:
    with server(model, max_concurrent_jobs="0") as idle:
        time.sleep(2)
        before_s = _used_s(idle.process)
        time.sleep(IDLE_S)
        part = (_used_s(idle.process) - before_s) / IDLE_S
    return ["an idle server with jobs off, of a core", f"{100 * part:.2f} %", "under 2 %"]


def _memory(model: str, recordings: Sequence[Recording], n_calls: int) -> list[list[str]]:
    with server(model) as busy, ThreadPoolExecutor(N_CALLERS) as callers:
        list(callers.map(busy.transcribe, recordings))
        peak_mib = _peak_mib(busy.process)
        shortest = sorted(recordings, key=lambda recording: recording.audio_s)[:4]
        calls = itertools.islice(itertools.cycle(shortest), n_calls)
        list(callers.map(busy.transcribe, itertools.islice(calls, n_calls // 10)))
        early_mib = busy.process.memory_info().rss / 2**20
        list(callers.map(busy.transcribe, calls))
        late_mib = busy.process.memory_info().rss / 2**20
    return [
        [f"peak memory, {N_CALLERS} callers", f"{peak_mib:.0f} MiB", "under 700 MB"],
        [f"growth from call {n_calls // 10} to {n_calls}", f"{late_mib - early_mib:+.0f} MiB", "flat"],
    ]


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_mib(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, "Linux tells the peak of a process"
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
