"""Files of callers are private, whatever the umask of the process that makes them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import chunk as chunk_of_job
from tests.harness import pcm, serving_jobs
from tests.service.access import KEYS, USER
from tests.service.test_jobs import claimed, submission
from tests.service.test_stream import config
from tests.service.test_uploads import chunk, finish, header
from typeless_grpc.disk import PRIVATE, READABLE, make_directory
from typeless_grpc.engine.scripted import ScriptedEngine

OTHERS = 0o077
AS_USER = (("x-api-key", USER),)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def reachable(directory: Path) -> set[str]:
    """What other users of this machine can read or change: paths below a directory, which they may enter."""
    found = set()
    for entry in directory.iterdir():
        mode = stat.S_IMODE(entry.lstat().st_mode)
        if mode & OTHERS:
            found.add(entry.name)
        if entry.is_dir() and mode & 0o011:
            found |= {f"{entry.name}/{inside}" for inside in reachable(entry)}
    return found


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("is_new", [True, False], ids=["a new data directory", "one that all may enter"])
async def test_nobody_else_reads_what_a_server_stores(tmp_path: Path, is_new: bool):
    data_dir = tmp_path / "data"
    if not is_new:
        data_dir.mkdir(mode=0o755)
    settings = {"max_concurrent_jobs": 0, "stream_store": "database", **KEYS}
    async with serving_jobs(ScriptedEngine(lambda call: "a word"), data_dir, **settings) as served:
        await served.uploads.UploadAudio(iter([header(), chunk(pcm()), finish()]), metadata=AS_USER)
        job = (await served.jobs.SubmitJob(submission(), metadata=AS_USER)).job
        served.runs.keep_chunk(claimed(served, job), chunk_of_job(0, "a word"))
        stream = served.transcription.StreamTranscribe(metadata=AS_USER)
        await stream.write(config())
        await stream.read()
        files = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.is_file()}
        assert {
            "access.sqlite3",
            "access.sqlite3-wal",
            "access.sqlite3-shm",
            "jobs/jobs.db",
            "jobs/jobs.db-wal",
        } <= files
        assert {file.split("/")[2] for file in files if file.startswith("jobs/files/")} >= {"jobs", "uploads"}
        assert reachable(data_dir) == set()
        if is_new:
            assert reachable(tmp_path) == set()
        stream.cancel()


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("mode", [PRIVATE, READABLE])
def test_a_directory_and_its_parents_have_the_mode_and_existing_ones_keep_theirs(tmp_path: Path, mode: int):
    existing = tmp_path / "existing"
    existing.mkdir(mode=0o777)
    make_directory(existing / "new" / "one", mode)
    make_directory(existing / "new" / "one", 0o755)
    made = [existing, existing / "new", existing / "new" / "one"]
    assert [stat.S_IMODE(one.stat().st_mode) for one in made] == [0o777, mode, mode]


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OSError):
            make_directory(path)


def test_a_key_made_on_the_command_line_is_stored_for_its_owner_alone(tmp_path: Path):
    data_dir = tmp_path / "data"
    command = f"umask 0; exec {sys.executable} -m typeless_grpc.cli keys create --role admin --local"
    environment = os.environ | {"TYPELESS_DATA_DIR": str(data_dir), "TYPELESS_AUTH_ENABLED": "true"}
    subprocess.run(["sh", "-c", command], env=environment, check=True, capture_output=True, timeout=60)
    assert (data_dir / "access.sqlite3").is_file()
    assert reachable(tmp_path) == set()
