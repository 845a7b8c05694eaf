"""Bytes to samples, and where speech is in them.

Importing this keeps NumPy from starting a thread for each core as it is loaded, whatever quota the process has: nothing
here multiplies matrices. Whoever set a number keeps it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
