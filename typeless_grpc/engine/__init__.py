"""From samples to text.

Importing this says how the threads of CTranslate2 wait for one another, because OpenMP reads it when it is loaded.
GNU's OpenMP lets threads spin while they wait, which takes the cores from the other batches that are decoded at the
same time (measured: docs/measurements/threads.md). Whoever set a policy keeps it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
