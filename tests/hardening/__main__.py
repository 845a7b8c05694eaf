"""Runs the parts of `make hardening`, and writes their tables into docs/reliability.md.

python -m tests.hardening [--scale 1.0] [--minutes 60] [PART ...]

scale: of every length; with less than 1, the figures are printed and not written. minutes: of the soak.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping

from tests.hardening import others, parts
from tests.hardening.report import Table, machine, write

PARTS: Mapping[str, Callable[[float], Table]] = {
    "fuzz": others.fuzz,
    "wire": others.wire,
    "faults": others.faults,
    "states": others.states,
    "load": parts.flood,
    "load-model": parts.flood_of_a_model,
    "fairness": parts.share,
    "leaks": parts.leak,
    "soak": parts.soaked,
}


def main() -> int:
    """Return the exit status: 1 if a figure is out of its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--write", action="store_true", help="write the tables even if the scale is less than 1")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    described, tables, problems = machine(), [], []
    for name in arguments.parts or PARTS:
        began_s = time.monotonic()
        run = PARTS[name]
        table = run(arguments.scale) if name != "soak" else parts.soaked(arguments.scale, arguments.minutes)
        print(f"{table.text()}\n\n{name}: {time.monotonic() - began_s:.0f} s\n", flush=True)
        problems += table.problems
        if table.rows:
            tables.append(table)
    if arguments.scale >= 1 or arguments.write:
        write(tables, described)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
