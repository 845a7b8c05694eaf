"""`typeless transcribe` against a server: text in a pipe, a progress line on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.harness import AUDIO, serving
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.interface import DecodeOptions, Task
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = str(AUDIO / "en_short.flac")


async def typeless(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), prog_name="typeless")


async def test_a_pipe_gets_the_text_and_nothing_else():
    async with serving(ScriptedEngine(lambda asked: "hello there")) as served:
        result = await typeless("transcribe", "--server", served.target, SPEECH)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello there\n", "")


async def test_several_files_are_told_apart():
    async with serving(ScriptedEngine(lambda asked: "hello")) as served:
        result = await typeless("transcribe", "--server", served.target, SPEECH, SPEECH)
    assert result.stdout == f"# {SPEECH}\nhello\n" * 2


async def test_json_is_one_object_a_line():
    async with serving(ScriptedEngine(lambda asked: "hello")) as served:
        result = await typeless("transcribe", "--json", "--server", served.target, SPEECH, SPEECH)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["transcript"]["text"] for answer in answers] == ["hello"] * 2


async def test_a_file_that_fails_does_not_stop_the_others(tmp_path: Path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"<html>")
    async with serving(ScriptedEngine(lambda asked: "hello")) as served:
        result = await typeless("transcribe", "--server", served.target, str(bad), SPEECH)
    assert result.exit_code == 1
    assert "hello" in result.stdout
    assert str(bad) in result.stderr
    assert "AUDIO_UNDECODABLE" in result.stderr


async def test_every_flag_reaches_the_engine(monkeypatch: pytest.MonkeyPatch):
    engine = ScriptedEngine()
    flags = "--model tiny --language de --task translate --prompt P --hotword a --hotword b --words --beam-size 3"
    async with serving(engine) as served:
        monkeypatch.setenv("TYPELESS_SERVER", served.target)
        result = await typeless("transcribe", *flags.split(), "--temperature", "0", "--temperature", "0.5", SPEECH)
    assert result.exit_code == 0, result.output
    assert engine.asked[0].options == DecodeOptions(
        model="tiny",
        language="de",
        task=Task.TRANSLATE,
        prompt="P",
        hotwords=("a", "b"),
        word_timestamps=True,
        beam_size=3,
        temperatures=(0.0, 0.5),
    )


async def test_a_terminal_sees_that_something_happens():
    engine = ScriptedEngine(lambda asked: "hello there")
    engine.gate.clear()
    async with serving(engine) as served:
        ours, theirs = pty.openpty()
        command = [Path(sys.executable).parent / "typeless", "transcribe", "--server", served.target, SPEECH]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "200"}
        )
        os.close(theirs)
        await engine.until(n_asked=1)
        seen = await asyncio.to_thread(os.read, ours, 4096)
        engine.gate.set()
        out, _ = await process.communicate()
        os.close(ours)
    assert b"en_short.flac" in seen
    assert b"KiB" in seen
    assert out == b"hello there\n"
