from __future__ import annotations

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from typeless_grpc.cli.open_files import allow_open_files
allow_open_files(500)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "warns"),
    [(256, 4096, 4096, False), (256, 300, 300, True), (1024, 1024, 1024, False)],
    ids=["is raised", "is too low", "is enough"],
)
def test_the_limit_of_open_files(soft: int, hard: int, allowed: int, warns: bool):
    assert hard <= resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(allowed)
    assert ("too few files may be open" in done.stdout) is warns
