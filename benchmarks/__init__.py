"""Benchmarks of the server and of the engine inside it."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the server; read when NumPy is imported
