"""A front of the simulation: `typeless serve` with its log in a file. python -m benchmarks.scale.front LOG"""

from __future__ import annotations

import os
import sys

from typeless_grpc.cli.main import main

if __name__ == "__main__":
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    sys.argv[1:] = ["serve", "--port", "0", "--model", "scripted"]
    main()
