"""Runs the benchmarks of the engine, one table each.

python -m benchmarks --model base --recordings ../shared/audio
"""

from __future__ import annotations

import sys

from benchmarks import accuracy, resources, speed

for benchmark in (speed, accuracy, resources):
    benchmark.main(sys.argv[1:])
