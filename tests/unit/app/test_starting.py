from __future__ import annotations

import subprocess
import sys


def test_nothing_that_is_slow_to_import_delays_the_model():
    code = "import sys, typeless_grpc.app.starting; print(*{'sqlalchemy', 'redis', 'jwt', 'dbos'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
