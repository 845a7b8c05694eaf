"""Recordings that are no files, results that cannot be written, and names that are no text, in every command."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.harness import AUDIO, serving, serving_jobs
from typeless_grpc.cli import audio_sources, files
from typeless_grpc.cli.commands import app
from typeless_grpc.client import AsyncClient, CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = AUDIO / "en_short.flac"
COMMANDS = ["transcribe", "batch", "stream", "bench --rounds 1", "jobs submit --wait"]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
# A regular file that nobody can read.
UNREADABLE = "/proc/self/mem"


async def typeless(*arguments: str, stdin: bytes | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=stdin, prog_name="typeless")


async def run(*arguments: str | bytes, stdin: Any = None, stdout: Any = None) -> tuple[int | None, bytes, bytes]:
    """Run a command as a process: its exit code, output and complaints."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "typeless",
        *arguments,
        stdin=stdin,
        stdout=stdout or asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaints = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out or b"", complaints


@contextmanager
def pipe_with(content: bytes) -> Iterator[str]:
    """The name of a pipe that content comes out of, as the shell makes one for `<(…)`."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        writer.join()


def stems_in(directory: Path) -> list[str]:
    return [file.stem for file in directory.iterdir()]


@contextmanager
def full_disk() -> Iterator[int]:
    """A file that nothing can be written to, for a process's output."""
    number = os.open("/dev/full", os.O_WRONLY)
    try:
        yield number
    finally:
        os.close(number)


@pytest.mark.parametrize("command", COMMANDS)
async def test_standard_input_is_a_recording(command: str, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path) as served:
        result = await typeless(*command.split(), "-s", served.target, "-", stdin=SPEECH.read_bytes())
    assert result.exit_code == 0, result.output
    assert "hello\n" in result.stdout or command.startswith("bench")


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_pipe_is_a_recording(command: str, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path) as served:
        with pipe_with(SPEECH.read_bytes()) as pipe:
            result = await typeless(*command.split(), "-s", served.target, pipe)
    assert result.exit_code == 0, result.output
    assert "hello\n" in result.stdout or command.startswith("bench")


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_pipes_and_files_stand_side_by_side(command: str, tmp_path: Path):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        with pipe_with(SPEECH.read_bytes()) as pipe:
            named = [str(SPEECH), pipe, "-", "-"]
            result = await typeless(
                command, "-s", served.target, "-o", str(tmp_path), *named, stdin=SPEECH.read_bytes()
            )
    assert result.exit_code == 0, result.output
    assert set(stems_in(tmp_path)) == {SPEECH.stem, pipe.rpartition("/")[2], "stdin"}
    assert "3 transcribed, 0 failed" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_empty_pipe_is_an_error(command: str, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path) as served:
        result = await typeless(*command.split(), "-s", served.target, "-", stdin=b"")
    assert result.exit_code == 1
    assert "no audio" in result.output or "AUDIO_MISSING" in result.output


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_pipe_without_end_is_read_only_up_to_the_limit_of_a_call(command: str):
    async with serving(ScriptedEngine(), max_message_bytes=128 * 1024) as served:
        result = await typeless(command, "-s", served.target, "/dev/zero")
    assert result.exit_code == 1
    assert "/dev/zero: has more than 65,536 bytes, the most for one call: `typeless jobs submit`" in result.stderr


async def test_a_pipe_without_end_is_uploaded_only_up_to_the_servers_limit(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_upload_bytes=100_000) as served:
        result = await typeless("jobs", "submit", "-s", served.target, "/dev/zero")
        async with AsyncClient(served.target, retry=False) as client:
            with pytest.raises(CallFailed, match="UPLOAD_TOO_LARGE"):
                await client.jobs.submit("/dev/zero")
            job = await client.jobs.submit(io.BytesIO(SPEECH.read_bytes()))
            assert (await client.jobs.wait(job.job_id)).transcript.text
    assert result.exit_code == 1
    assert "the recording has more than 100000 bytes (UPLOAD_TOO_LARGE)" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_terminal_is_refused_as_a_recording(command: str):
    screen, terminal = pty.openpty()
    try:
        result = await typeless(*command.split(), "-s", "127.0.0.1:9", os.ttyname(terminal))
    finally:
        os.close(screen)
        os.close(terminal)
    assert result.exit_code == 2
    assert "is a terminal: pipe a recording into it, or name a file" in result.stderr


async def test_a_terminal_as_standard_input_is_refused_at_once():
    screen, terminal = pty.openpty()
    code, _, complaints = await run("transcribe", "-", stdin=terminal)
    os.close(screen)
    os.close(terminal)
    assert code == 2
    assert b"standard input is a terminal: pipe a recording into it, or name a file" in complaints


@pytest.mark.parametrize("command", [*COMMANDS, "stream --realtime"])
@pytest.mark.parametrize(
    "name", ["", "missing.wav", "~no-such-user/a.wav", "."], ids=["empty", "file", "user", "directory"]
)
async def test_an_invalid_recording_is_an_error_before_any_call(command: str, name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = await typeless(*command.split(), "-s", "127.0.0.1:9", name)
    assert result.exit_code == 2
    assert "there is no" in result.stderr


async def test_realtime_is_refused_for_a_pipe():
    with pipe_with(b"") as pipe:
        result = await typeless("stream", "--realtime", pipe)
    assert result.exit_code == 2
    assert "--realtime" in result.stderr


# ---- files that cannot be read ---------------------------------------------------------------------------------


@pytest.mark.skipif(not Path(UNREADABLE).exists(), reason=f"no {UNREADABLE} on this machine")
@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_an_unreadable_file_does_not_stop_the_others(command: str):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(command, "-s", served.target, UNREADABLE, str(SPEECH))
    assert result.exit_code == 1
    assert f"{UNREADABLE}: cannot be read: Input/output error\n" in result.stderr
    assert "hello" in result.stdout
    assert "1 transcribed, 1 failed" in result.stderr


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_deleted_file_does_not_stop_the_others(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deleted = tmp_path / "deleted.wav"
    shutil.copy(SPEECH, deleted)

    def named(patterns: list[str]) -> list[Path]:
        found = files.recordings(patterns)
        deleted.unlink()
        return found

    monkeypatch.setattr(f"typeless_grpc.cli.{command}.recordings", named)
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(command, "-s", served.target, str(deleted), str(SPEECH))
    assert result.exit_code == 1
    assert f"{deleted}: cannot be read: No such file or directory\n" in result.stderr
    assert "hello" in result.stdout


# ---- results that cannot be written ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_result_that_cannot_be_saved_does_not_stop_the_others(command: str, tmp_path: Path):
    second = tmp_path / "second.flac"
    shutil.copy(SPEECH, second)
    out = tmp_path / "out"
    (out / "en_short.txt").mkdir(parents=True)
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(command, "-s", served.target, "-o", str(out), str(SPEECH), str(second))
    assert result.exit_code == 1
    assert f"{SPEECH}: {out / 'en_short.txt'} cannot be written: Is a directory\n" in result.stderr
    assert "1 transcribed, 1 failed" in result.stderr
    assert (out / "second.txt").read_text() == "hello\n"
    assert sorted(file.name for file in out.iterdir()) == ["en_short.txt", "second.txt"]


async def test_a_deleted_output_directory_is_a_line_for_each_recording(tmp_path: Path):
    out = tmp_path / "out"

    def answer(_call: object) -> str:
        shutil.rmtree(out, ignore_errors=True)
        return "hello"

    async with serving(ScriptedEngine(answer)) as served:
        result = await typeless("batch", "-s", served.target, "-o", str(out), str(SPEECH), str(AUDIO / "en_short.mp3"))
    assert result.exit_code == 1
    assert result.stderr.count("cannot be written: No such file or directory") == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)


@FULL
@pytest.mark.parametrize("words", ["transcribe", "batch", "stream", "stream --json", "jobs list", "config", "--help"])
async def test_standard_output_on_a_full_disk_is_one_line(words: str, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path) as served:
        names = [str(SPEECH)] if words.split()[0] in ("transcribe", "batch", "stream") else []
        server = ["-s", served.target] if names or words.startswith("jobs") else []
        with full_disk() as full:
            code, _, complaints = await run(*words.split(), *server, *names, stdout=full)
    assert (code, complaints) == (1, b"typeless: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", ["transcribe", "batch", "stream", "jobs list"])
async def test_a_closed_pipe_ends_a_command_quietly(words: str, tmp_path: Path):
    reading, writing = os.pipe()
    os.close(reading)
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path) as served:
        names = [] if words.startswith("jobs") else [str(SPEECH)]
        code, _, complaints = await run(*words.split(), "-s", served.target, *names, stdout=writing)
    os.close(writing)
    assert (code, complaints) == (1, b"")


@FULL
async def test_files_are_written_although_standard_output_is_full(tmp_path: Path):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        with full_disk() as full:
            named = [str(SPEECH), str(AUDIO / "en_short.wav")]
            code, _, complaints = await run(
                "transcribe", "--json", "-s", served.target, "-o", str(tmp_path), *named, stdout=full
            )
    assert code == 1
    assert b"standard output cannot be written: No space left on device; the files are written\n" in complaints
    assert sorted(stems_in(tmp_path)) == ["en_short.flac", "en_short.wav"]


# ---- names -----------------------------------------------------------------------------------------------------

NAMES = {b"caf\xe9.flac": "caf\\xe9.flac", b"new\nline.flac": "new\\nline.flac", b"[red]:x:.flac": "[red]:x:.flac"}


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_name_need_not_be_utf8(command: str, tmp_path: Path):
    file = tmp_path / os.fsdecode(b"caf\xe9.flac")
    shutil.copy(SPEECH, file)
    async with serving_jobs(ScriptedEngine(lambda call: "hello"), tmp_path / "jobs") as served:
        code, out, complaints = await run(*command.split(), "-s", served.target, os.fsencode(file))
    assert code == 0, complaints
    assert b"hello\n" in out or command.startswith("bench")


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_any_name_is_printed_on_one_line(command: str, tmp_path: Path):
    named = [tmp_path / os.fsdecode(name) for name in NAMES]
    for file in named:
        shutil.copy(SPEECH, file)
    out = tmp_path / "out"
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        at = (command, "-s", served.target)
        _, printed, table = await run(*at, *map(os.fsencode, named))
        _, lines, _ = await run(*at, "--json", *map(os.fsencode, named))
        code, _, _ = await run(*at, "-o", str(out), *map(os.fsencode, named))
    assert [line for line in printed.decode().splitlines() if line.startswith("#")] == [
        f"# {tmp_path}/{name}" for name in NAMES.values()
    ]
    assert all(name in table.decode() for name in NAMES.values())
    assert len([json.loads(line) for line in lines.splitlines()]) == len(NAMES)
    assert (code, {os.fsencode(file.stem) for file in out.iterdir()}) == (0, {name[:-5] for name in NAMES})


async def test_an_option_that_is_not_utf8_is_an_error():
    code, _, complaints = await run("transcribe", "-s", "127.0.0.1:9", "--prompt", b"caf\xe9", str(SPEECH))
    assert (code, complaints) == (1, b"typeless: 'caf\\xe9' is not UTF-8\n")


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_long_name_does_not_break_the_table(command: str, tmp_path: Path):
    file = tmp_path / f"{'long ' * 40}.flac"
    shutil.copy(SPEECH, file)
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(command, "-s", served.target, str(file), str(SPEECH))
    head, first, second, *_ = result.stderr.splitlines()
    assert first.startswith(str(file))
    assert first.rstrip().endswith("done")
    assert len({line.index(word) for line, word in ((head, "outcome"), (first, "done"), (second, "done"))}) == 1


async def test_an_error_of_a_pipe_names_it(monkeypatch: pytest.MonkeyPatch):
    def broken(_file: Path, _block_bytes: int = 0) -> Any:
        return audio_sources.from_thread(audio_sources.blocks_of(lambda: os.read(-1, 1)))

    monkeypatch.setattr(audio_sources, "piped", broken)
    async with serving(ScriptedEngine()) as served:
        result = await typeless("transcribe", "-s", served.target, "/dev/null")
    assert result.exit_code == 1
    assert "/dev/null: cannot be read: Bad file descriptor" in result.stderr
