"""`typeless stream` against a server: final lines in a pipe, live text on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.harness import AUDIO, serving
from tests.speech import speech, words_as_they_come
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = str(AUDIO / "en_short.wav")
SPEECH_BYTES = (AUDIO / "en_short.wav").read_bytes()


async def typeless(*arguments: str, stdin: bytes | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["stream", *arguments], input=stdin, prog_name="typeless")


async def test_a_pipe_gets_final_lines_and_nothing_else(tmp_path: Path):
    raw = tmp_path / "two.raw"
    raw.write_bytes(speech(1.0, 0.8, 1.0))
    async with serving(ScriptedEngine(lambda call: "hello there")) as served:
        result = await typeless("--server", served.target, "--encoding", "pcm_s16le", str(raw))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello there\nhello there\n", "")


async def test_standard_input_is_audio_too():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("--server", served.target, "-", stdin=SPEECH_BYTES)
    assert (result.exit_code, result.stdout) == (0, "hello\n")


async def test_standard_input_that_cannot_be_read_is_one_line_and_exit_code_1():
    unreadable = os.open(os.devnull, os.O_WRONLY)
    async with serving(ScriptedEngine(lambda call: "hello")) as served, asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "typeless_grpc.cli", "stream", "--server", served.target, "-"),
            stdin=unreadable,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(unreadable)
        out, complaints = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert complaints == b"typeless: standard input cannot be read: Bad file descriptor\n"


@pytest.mark.parametrize("mode", ["live", "file"])
async def test_json_is_one_event_for_each_line(mode):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("--server", served.target, "--json", "--mode", mode, SPEECH)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert "started" in events[0]
    assert events[0]["started"]["effectiveConfig"]["mode"] == f"STREAM_MODE_{mode.upper()}"
    assert events[-1]["completed"]["transcript"]["text"] == "hello"


async def test_realtime_is_no_faster_than_speech():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        began_s = time.monotonic()
        result = await typeless("--server", served.target, "--realtime", SPEECH)
        took_s = time.monotonic() - began_s
    assert result.stdout == "hello\n"
    assert took_s >= 1.5  # of 1.7 s


async def test_a_terminal_shows_text_before_it_is_final():
    engine = ScriptedEngine(words_as_they_come)
    async with serving(engine) as served:
        screen, terminal = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "typeless_grpc.cli", "stream", "--server", served.target, "--realtime"),
            str(AUDIO / "en_two_sentences.flac"),
            stdout=terminal,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
        )
        os.close(terminal)
        shown = await asyncio.to_thread(_all_of, screen)
        assert await process.wait() == 0
    assert re.search(r"\x1b\[90m\s*one", shown)  # grey
    assert "one two" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


@pytest.mark.parametrize("is_piped", [False, True], ids=["terminal", "pipe"])
async def test_a_file_has_a_progress_bar_on_a_terminal(is_piped, tmp_path: Path):
    raw = tmp_path / "file.raw"
    raw.write_bytes(speech(*[6.0, 0.6] * 10))
    async with serving(ScriptedEngine(lambda call: "hello there")) as served:
        screen, terminal = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "typeless_grpc.cli", "stream", "--server", served.target, "--mode", "file"),
            *("--encoding", "pcm_s16le", str(raw)),
            stdout=asyncio.subprocess.PIPE if is_piped else terminal,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
        )
        os.close(terminal)
        (piped, _), shown = await asyncio.gather(process.communicate(), asyncio.to_thread(_all_of, screen))
    assert process.returncode == 0
    assert "100%" in shown
    if is_piped:
        assert set(piped.decode().splitlines()) == {"hello there"}
    assert ("hello there" in shown) is not is_piped


def _all_of(screen: int) -> str:
    data = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        data += part
    os.close(screen)
    return data.decode(errors="replace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere.wav"], "there is no file"), (["--mode", "dead", SPEECH], "not one of")],
)
async def test_an_invalid_command_line_is_exit_code_2(arguments, message):
    result = await typeless(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


async def test_no_server_is_one_line_and_exit_code_1():
    result = await typeless("--server", "127.0.0.1:1", SPEECH)
    assert result.exit_code == 1
    assert "no server answers" in result.stderr


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--encoding", ["--encoding", "pcm_s16le", "mic"]),
        ("--rate", ["--rate", "8000", SPEECH]),
        ("--channels", ["--channels", "1", SPEECH]),
        ("--device", ["--device", "1", SPEECH]),
        ("--realtime", ["--realtime", "-"]),
        ("--interim", ["--interim", "--mode", "file", SPEECH]),
        ("--words", ["--words", SPEECH]),
    ],
)
async def test_an_option_without_effect_is_refused(option: str, arguments: list[str]):
    result = await typeless(*arguments)
    assert result.exit_code == 2
    assert option in re.sub(r"\x1b\[[0-9;]*m", "", result.stderr)
