from __future__ import annotations

import subprocess
import sys


def test_the_model_can_load_before_what_takes_long_to_import_is_there():
    code = "import sys, typeless_grpc.app.starting; print(*{'sqlalchemy', 'redis', 'jwt', 'dbos'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
