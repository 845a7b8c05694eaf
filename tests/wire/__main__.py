"""The long form: attacks a server for the given time, and prints what was tried and what others noticed.

python -m tests.wire [SECONDS [SEED]]   mutated connections for half of the time, each attack for its share of the rest;
                                        without SECONDS for ten minutes, times the variable SCALE
python -m tests.wire replay SEED        sends one mutated connection, and prints it

The last line is JSON: {"inputs": N, "faults": N, "seconds": S, ...}. It ends with 1 if there was a fault.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.wire.attacks import ATTACKS
from tests.wire.mutations import played, script
from tests.wire.server import Attacked, attacked
from tests.wire.witness import Testimony

N_AT_ONCE = 4
KINDS = ("unary", "newcomer", "live")


def main(seconds: float, seed: int) -> int:
    """Run everything; return the number of faults."""
    share_s = seconds / 2 / len(ATTACKS)
    rows: list[tuple[str, int, float]] = []
    faults: list[str] = []
    with TemporaryDirectory() as directory, attacked(Path(directory)) as server:
        _head()
        for name, attack in ATTACKS.items():
            rows.append(_one(name, server, share_s, faults, lambda over, attack=attack: attack(server.port, over)))
        rows.append(_one("mutations", server, seconds / 2, faults, lambda over: _mutations(server, seed, over, faults)))
        state = server.state(at_rest=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    total = {
        "inputs": sum(n for _, n, _ in rows),
        "faults": len(faults),
        "seconds": round(sum(spent_s for _, _, spent_s in rows), 1),
        "seed": seed,
        "mutated_connections": rows[-1][1],
        "memory_grown_bytes": state.memory_bytes - server.baseline.memory_bytes,
    }
    print(json.dumps(total))
    return len(faults)


def _head() -> None:
    print(f"Latencies of a well-behaved caller in milliseconds: median and longest of {', '.join(KINDS)}.\n")
    print("| Attack | Inputs | per second | " + " | ".join(KINDS) + " | CPU | Faults |")
    print("| --- |" + " ---: |" * (4 + len(KINDS)))


def _one(
    name: str, server: Attacked, seconds: float, faults: list[str], run: Callable[[Callable[[], bool]], int]
) -> tuple[str, int, float]:
    n_faults, before, began_s = len(faults), server.state(), time.monotonic()
    with server.witnessed() as testimony:
        n_inputs = run(lambda: time.monotonic() > began_s + seconds)
        spent_s = time.monotonic() - began_s
        cpu_s = server.state().cpu_s - before.cpu_s
    left = server.settled()
    faults += [f"{name}: {what}" for what in (*testimony.complaints, *left, *server.problems())]
    server.log.write_text("")
    cells = [f"{n_inputs:,}", f"{n_inputs / spent_s:,.0f}", *(_shown(testimony, kind) for kind in KINDS)]
    print(f"| {name} | {' | '.join(cells)} | {cpu_s / spent_s:.0%} | {len(faults) - n_faults} |", flush=True)
    return name, n_inputs, spent_s


def _shown(testimony: Testimony, kind: str) -> str:
    longest_s = max(testimony.latencies_s.get(kind, [0.0]))
    return f"{1000 * testimony.median_s(kind):.0f}, {1000 * longest_s:.0f}"


def _mutations(server: Attacked, seed: int, over: Callable[[], bool], faults: list[str]) -> int:
    def some(first: int) -> int:
        n = 0
        while not over():
            one = script(first + n)
            wrong = played(server.port, one)
            if wrong:
                faults.append(f"{wrong}\n{one.describe()}")
            n += 1
        return n

    with ThreadPoolExecutor(N_AT_ONCE) as threads:
        return sum(threads.map(some, [seed * 1_000_000_000 + 10_000_000 * index for index in range(N_AT_ONCE)]))


def replay(seed: int) -> int:
    """Send the connection of a seed; return the number of faults."""
    one = script(seed)
    print(one.describe())
    with TemporaryDirectory() as directory, attacked(Path(directory)) as server:
        wrong = played(server.port, one)
        print(*wrong, *server.problems(), sep="\n")
    return len(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["replay"]:
        sys.exit(min(1, replay(int(sys.argv[2]))))
    given = sys.argv[1:] or [600 * float(os.environ.get("SCALE", "1"))]
    sys.exit(min(1, main(float(given[0]), int(given[1]) if given[1:] else random.randrange(10**6))))
