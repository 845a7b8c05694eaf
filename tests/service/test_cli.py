"""`typeless transcribe` against a server: text in a pipe, a progress line on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.harness import AUDIO, serving
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Mode, PostProcessing, Task
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import Overloaded

SPEECH = str(AUDIO / "en_short.flac")
SAME = str(AUDIO / "en_short.mp3")


async def typeless(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), prog_name="typeless")


async def test_a_pipe_gets_the_text_and_nothing_else():
    async with serving(ScriptedEngine(lambda call: "hello there")) as served:
        result = await typeless("transcribe", "--server", served.target, SPEECH)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello there\n", "")


async def test_several_files_have_headings():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("transcribe", "--server", served.target, SPEECH, SAME)
    assert result.stdout == f"# {SPEECH}\nhello\n# {SAME}\nhello\n"


async def test_json_is_one_object_for_each_line():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("transcribe", "--json", "--server", served.target, SPEECH, SAME)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["transcript"]["text"] for answer in answers] == ["hello"] * 2


async def test_a_file_that_fails_does_not_stop_the_others(tmp_path: Path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"<html>")
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("transcribe", "--server", served.target, str(bad), SPEECH)
    assert result.exit_code == 1
    assert "hello" in result.stdout
    assert str(bad) in result.stderr
    assert "AUDIO_UNDECODABLE" in result.stderr


async def test_every_flag_reaches_the_engine(monkeypatch: pytest.MonkeyPatch):
    engine = ScriptedEngine()
    flags = (
        "--model tiny --language de --allow-language de --task translate --prompt P --hotwords a --hotword b,c --words "
        "--beam-size 3 --chunking fixed --channels separate --tidy standard --replace a=b --mask-profanity --format vtt"
    )
    async with serving(engine) as served:
        monkeypatch.setenv("TYPELESS_SERVER", served.target)
        result = await typeless("transcribe", *flags.split(), "--temperature", "0", "--temperature", "0.5", SPEECH)
    assert result.exit_code == 0, result.output
    assert engine.calls[0].options == DecodeOptions(
        model="tiny",
        language="de",
        task=Task.TRANSLATE,
        prompt="P",
        hotwords=("a", "b", "c"),
        word_timestamps=True,
        beam_size=3,
        temperatures=(0.0, 0.5),
        allowed_languages=("de",),
        chunking=Chunking.FIXED,
        separate_channels=True,
        post_processing=PostProcessing(Mode.STANDARD, {"a": "b"}, mask_profanity=True),
    )
    # The format is the server's work after the engine's: only the file shows that it was requested.
    assert result.stdout.startswith("WEBVTT\n\n00:00:00.000 --> ")


async def test_a_terminal_shows_progress():
    engine = ScriptedEngine(lambda call: "hello there")
    engine.gate.clear()
    async with serving(engine) as served:
        ours, theirs = pty.openpty()
        command = [Path(sys.executable).parent / "typeless", "transcribe", "--server", served.target, SPEECH]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "200"}
        )
        os.close(theirs)
        await engine.until(n_calls=1)
        seen = await asyncio.to_thread(os.read, ours, 4096)
        engine.gate.set()
        out, _ = await process.communicate()
        os.close(ours)
    assert b"en_short.flac" in seen
    assert b"KiB" in seen
    assert out == b"hello there\n"


# ---- many files -----------------------------------------------------------------------------------------------


def calls(directory: Path) -> list[Path]:
    """Five recordings in a directory of several, of which one is no audio."""
    (directory / "deep").mkdir(parents=True)
    files = [directory / name for name in ("a.wav", "b.flac", "deep/a.mp3", "deep/c.wav")]
    for file in files:
        file.write_bytes((AUDIO / f"en_short.{file.suffix[1:]}").read_bytes())
    files.append(directory / "e.wav")
    files[-1].write_bytes(b"<html>")
    (directory / "notes.txt").write_text("no recording")
    return files


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_directory_becomes_a_directory_of_subtitles(command: str, tmp_path: Path):
    calls(tmp_path / "calls")
    out = tmp_path / "out"
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(
            command, "-s", served.target, "-f", "srt", "-f", "text", "-o", str(out), str(tmp_path / "calls")
        )
    assert result.exit_code == 1
    assert sorted(one.name for one in out.iterdir()) == sorted(
        f"{stem}.{suffix}" for stem in ("a.wav", "b", "a.mp3", "c") for suffix in ("srt", "txt")
    )
    assert (out / "b.srt").read_text().startswith("1\n00:00:00,000 --> ")
    assert (out / "b.txt").read_text() == "hello\n"
    assert result.stdout == ""
    assert "4 transcribed, 1 failed" in result.stderr
    assert "AUDIO_UNDECODABLE" in result.stderr


@pytest.mark.parametrize("command", ["transcribe", "batch"])
async def test_a_pattern_means_the_files_it_matches_in_order(command: str, tmp_path: Path):
    calls(tmp_path / "calls")
    pattern = str(tmp_path / "calls" / "**" / "*.flac")
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless(command, "-s", served.target, pattern, SPEECH, SPEECH)
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("#")] == [
        f"# {tmp_path / 'calls' / 'b.flac'}",
        f"# {SPEECH}",
    ]


async def test_results_are_printed_in_order_however_the_answers_come(tmp_path: Path):
    engine = ScriptedEngine(lambda call: call.options.language or "")
    async with serving(engine) as served:
        result = await typeless("transcribe", "-s", served.target, "--parallel", "8", str(AUDIO / "en_short*.[fow]*"))
    named = [line[2:] for line in result.stdout.splitlines() if line.startswith("#")]
    assert named == sorted(named)
    assert len(named) >= 3


async def test_batches_are_limited_by_size_and_by_message():
    engine = ScriptedEngine(lambda call: "hello")
    async with serving(engine, max_batch_items=2) as served:
        result = await typeless(
            "batch",
            "-s",
            served.target,
            "--size",
            "2",
            *[str(AUDIO / f"en_short.{s}") for s in ("flac", "mp3", "ogg", "m4a", "webm")],
        )
    assert result.exit_code == 0, result.stderr
    assert "5 transcribed, 0 failed" in result.stderr
    assert len(engine.calls) == 5


async def test_a_batch_the_server_refuses_fails_its_files():
    async with serving(ScriptedEngine(), max_batch_items=1) as served:
        result = await typeless("batch", "-s", served.target, SPEECH, str(AUDIO / "en_short.mp3"))
    assert result.exit_code == 1
    assert result.stderr.count("TOO_MANY_ITEMS") >= 2


async def test_a_call_to_a_full_server_is_repeated():
    answers: list[Any] = [Overloaded("Full.", retry_after_s=0.001), "hello"]
    async with serving(ScriptedEngine(lambda call: answers.pop(0))) as served:
        result = await typeless("transcribe", "-s", served.target, SPEECH)
    assert (result.exit_code, result.stdout) == (0, "hello\n")


async def test_a_wait_is_reported_to_a_script():
    answers: list[Any] = [Overloaded("Full.", retry_after_s=1.5), "hello"]
    async with serving(ScriptedEngine(lambda call: answers.pop(0))) as served:
        result = await typeless("transcribe", "-s", served.target, SPEECH)
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert "waiting 2 s for the server" in result.stderr


@pytest.mark.parametrize("command", ["transcribe", "batch"])
@pytest.mark.parametrize(
    "flags",
    [["-f", "srt", "-f", "vtt"], ["--replace", "nothing"], ["-f", "doc"], ["--chunking", "no"], ["no/such/*.wav"]],
    ids=["two formats", "replace", "format", "chunking", "pattern"],
)
async def test_invalid_flags_end_with_2(command: str, flags: list[str]):
    result = await typeless(command, "-s", "127.0.0.1:9", *flags, SPEECH)
    assert result.exit_code == 2


@pytest.mark.parametrize("command", ["transcribe", "batch"])
@pytest.mark.parametrize("flags", [["-f", "text"], ["-f", "tsv"], ["-o", "out"]], ids=["text", "tsv", "files of text"])
async def test_words_are_refused_if_the_format_has_none(command: str, flags: list[str], monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    result = await typeless(command, "-s", "127.0.0.1:9", "--words", *flags, SPEECH)
    assert result.exit_code == 2
    assert "--words" in result.stderr
    assert not (tmp_path / "out").exists()


async def test_a_format_with_words_has_the_words_in_the_format():
    async with serving(ScriptedEngine(lambda call: "hello there")) as served:
        result = await typeless("transcribe", "-s", served.target, "--words", "-f", "json", SPEECH)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert [word["text"] for segment in document["segments"] for word in segment["words"]] == ["hello", "there"]


async def test_one_format_goes_to_a_pipe_as_it_is():
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        result = await typeless("transcribe", "-s", served.target, "-f", "vtt", SPEECH)
    assert result.stdout.startswith("WEBVTT\n\n00:00:00.000 --> ")
