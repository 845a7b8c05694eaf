"""From samples to text.

Importing this package sets how the threads of CTranslate2 wait for one another, because OpenMP reads that when it is
loaded. By default GNU's OpenMP spins, which takes the cores from other batches that are decoded at the same time
(docs/measurements/threads.md). A value that is set already is kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
