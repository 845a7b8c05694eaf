"""Closed and full standard streams, narrow terminals, keys in pipes, and outputs that would destroy an input."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.harness import AUDIO, serving, serving_jobs
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = AUDIO / "en_short.flac"
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
UNREADABLE = "/proc/self/mem"


async def run(
    *arguments: str | Path, closed: Sequence[int] = (), full: Sequence[int] = (), **env: str
) -> tuple[int | None, str, str]:
    """Run a command with closed or full descriptors: its exit code, output and complaints."""
    redirected = [*(f"{number}>&-" for number in closed), *(f"{number}>/dev/full" for number in full)]
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'exec "$0" "$@" {" ".join(redirected)}'),
        *(Path(sys.executable).parent / "typeless", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")} | env,
    )
    out, complaints = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), complaints.decode()


@pytest.mark.parametrize(
    "words", ["--help", "--version", "config", "models list", "jobs list", "jobs stats", "bench --rounds 1", "stream"]
)
async def test_a_closed_standard_output_is_an_error(words: str, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path) as served:
        names = [SPEECH] if words.split()[0] in ("bench", "stream") else []
        code, _, complaints = await run(*words.split(), *names, closed=[1], TYPELESS_SERVER=served.target)
    assert (code, complaints.splitlines()[-1]) == (
        1,
        "typeless: standard output cannot be written: Bad file descriptor",
    )


async def test_files_are_written_with_every_standard_stream_closed(tmp_path: Path):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        code, _, _ = await run("transcribe", SPEECH, "-o", tmp_path, closed=[0, 1, 2], TYPELESS_SERVER=served.target)
    assert (code, (tmp_path / "en_short.txt").read_text("utf-8")) == (0, "hello\n")


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
async def test_a_new_key_whose_secret_is_lost_is_named(flags: list[str], tmp_path: Path):
    code, _, complaints = await run("keys", "create", "--local", *flags, closed=[1], TYPELESS_DATA_DIR=str(tmp_path))
    _, listed, _ = await run("keys", "list", "--local", TYPELESS_DATA_DIR=str(tmp_path))
    (key_id,) = (word for word in listed.split() if word.startswith("k") and word != "key")
    assert code == 1
    assert f"the secret of key {key_id} is lost: `typeless keys revoke {key_id}`" in complaints


@FULL
async def test_a_full_standard_error_loses_no_result():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        named = [SPEECH, AUDIO / "en_short.wav"]
        assert await run("transcribe", *named, full=[2], TYPELESS_SERVER=served.target) == (
            0,
            "".join(f"# {file}\nhello\n" for file in named),
            "",
        )
        code, out, _ = await run("transcribe", SPEECH, UNREADABLE, full=[2], TYPELESS_SERVER=served.target)
    assert (code, out) == (1, f"# {SPEECH}\nhello\n")


async def test_a_complaint_is_one_line_on_a_narrow_terminal(tmp_path: Path):
    wrong = tmp_path / ("a long name " * 10 + ".wav")
    wrong.write_bytes(b"no audio")
    async with serving(ScriptedEngine()) as served:
        _, _, complaints = await run("transcribe", wrong, SPEECH, TYPELESS_SERVER=served.target, COLUMNS="20")
    assert complaints.startswith(f"{wrong}: ")
    assert "(AUDIO_UNDECODABLE)\n" in complaints
    assert complaints.endswith("\n1 transcribed, 1 failed\n")


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_an_output_never_overwrites_a_recording(command: str, tmp_path: Path):
    recording, link = tmp_path / "call.txt", tmp_path / "out" / "call.txt"
    shutil.copy(SPEECH, recording)
    link.parent.mkdir()
    link.symlink_to(recording)
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        for directory in (tmp_path, link.parent):
            code, _, complaints = await run(command, recording, "-o", directory, TYPELESS_SERVER=served.target)
            assert (code, "call.txt cannot be written: it is one of the recordings" in complaints) == (1, True)
    assert recording.read_bytes() == SPEECH.read_bytes()


async def test_a_key_is_read_from_a_pipe():
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "w") as pipe:
            pipe.write("good\n")

    writer = threading.Thread(target=write)
    writer.start()
    guarded = {"auth_enabled": True, "require_auth": True, "api_keys": "good"}
    async with serving(ScriptedEngine(lambda call: "hello"), **guarded) as served:
        result = await asyncio.to_thread(
            CliRunner().invoke,
            app,
            ["transcribe", "-s", served.target, str(SPEECH)],
            env={"TYPELESS_API_KEY_FILE": f"/dev/fd/{reading}"},
        )
    os.close(reading)
    writer.join()
    assert (result.exit_code, result.stdout) == (0, "hello\n"), result.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e300"])
@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_time_limit_that_is_none_is_refused(command: str, seconds: str):
    result = CliRunner().invoke(app, [command, "--timeout", seconds, str(SPEECH)])
    assert (result.exit_code, "--timeout" in result.stderr) == (2, True)
