"""No data becomes code: nothing is unpickled, evaluated, or run by a shell. Every locked file is known by its hash."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

SOURCES = sorted(REPOSITORY.glob("typeless_grpc/**/*.py"))
# They make objects, and run what these say, from bytes.
UNSAFE_MODULES = frozenset(
    {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "torch"}
)
UNSAFE_CALLS = frozenset(
    {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load"}
)
LOCKS = sorted(REPOSITORY.glob("requirements/*.lock"))


def problems(tree: ast.AST) -> Iterator[str]:
    """What a module does that could run a stranger's data."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (one.name for one in names if one.name.partition(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNSAFE_MODULES:
                yield module
            case ast.Call(function, _, keywords):
                name, named = ast.unparse(function), {one.arg: ast.unparse(one.value) for one in keywords}
                if name in UNSAFE_CALLS:
                    yield name
                if named.get("shell", "False") != "False":
                    yield f"{name}(shell)"
                if name in ("np.load", "numpy.load") and named.get("allow_pickle") != "False":
                    yield f"{name} without allow_pickle=False"
                if name in ("DBOS", "DBOSClient") and named.get("serializer", "DBOSPortableJSON") != "DBOSPortableJSON":
                    yield f"{name} with another serializer"


def test_no_source_makes_code_of_data():
    found = {str(path): list(problems(ast.parse(path.read_text("utf-8")))) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}
    assert len(found) > 100


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.nn",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "np.load(file)",
        "yaml.load(text)",
        "DBOSClient(serializer=DBOSDefaultSerializer)",
    ],
)
def test_what_would_is_found(line: str):
    assert list(problems(ast.parse(line)))


# Runs a job to its end, with all that DBOS and the stores read and write, and fails if anything is unpickled.
JOB = """
import asyncio, sys, tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.harness import serving_jobs
from tests.service.test_jobs import COMPLETED, submitted, watched
from typeless_grpc.engine.scripted import ScriptedEngine

unpickled = []
sys.addaudithook(lambda event, arguments: unpickled.append(arguments) if event == "pickle.find_class" else None)


async def main():
    with tempfile.TemporaryDirectory() as directory:
        async with serving_jobs(ScriptedEngine(lambda call: "a word"), Path(directory)) as served:
            job = await submitted(served, 1.0)
            assert (await watched(served, job.job_id))[-1].job.state == COMPLETED


asyncio.run(main())
assert not unpickled, unpickled
import pickle
pickle.loads(pickle.dumps(Path("/")))
assert unpickled, "the hook sees nothing"
"""


def test_nothing_is_unpickled_while_a_job_runs(tmp_path: Path):
    script = tmp_path / "job.py"
    script.write_text(JOB)
    done = subprocess.run(
        [sys.executable, script, REPOSITORY], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("lock", LOCKS, ids=[path.stem for path in LOCKS])
def test_every_locked_requirement_is_pinned_to_files_by_their_hashes(lock: Path):
    requirements = re.split(r"\n(?=\S)", lock.read_text("utf-8").strip())
    assert [one.splitlines()[0] for one in requirements if "==" not in one or "--hash=sha256:" not in one] == []
