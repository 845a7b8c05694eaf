"""How every command behaves: Ctrl-C, exit codes, errors as a line, -v, JSON, completion."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.harness import AUDIO, serving, serving_jobs
from tests.servers import free_port
from tests.speech import speech
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = str(AUDIO / "en_short.flac")
PIPE = asyncio.subprocess.PIPE


async def started(target: str, *words: str, **env: str) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    return await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "typeless",
        *words,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=kept | {"TYPELESS_SERVER": target} | env,
    )


async def typeless(target: str, *words: str, **env: str) -> tuple[int | None, str, str]:
    """The exit code, output and complaints."""
    process = await started(target, *words, **env)
    out, complaints = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), complaints.decode()


@pytest.mark.parametrize("words", [["transcribe", SPEECH], ["batch", SPEECH]], ids=lambda words: words[0])
async def test_ctrl_c_ends_the_work_on_the_server_too(words: list[str]):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        process = await started(served.target, *words)
        async with asyncio.timeout(60):
            await engine.until(n_calls=1)
            process.send_signal(signal.SIGINT)
            out, complaints = await process.communicate()
            await engine.until(n_cancelled=1)
    assert (process.returncode, out, complaints) == (130, b"", b"typeless: interrupted\n")


async def test_ctrl_c_ends_live_audio_and_prints_its_last_words():
    async with serving(ScriptedEngine(lambda call: "the last words")) as served:
        process = await started(served.target, "stream", "--json", "--encoding", "pcm_s16le", "-")
        assert process.stdin
        assert process.stdout
        process.stdin.write(speech(1.0))
        await process.stdin.drain()
        async with asyncio.timeout(60):
            seen: list[bytes] = []
            while not any(b"speechActivity" in line for line in seen):  # the words have come, and go on
                seen.append(await process.stdout.readline())
                assert seen[-1], "the command ended"
            process.send_signal(signal.SIGINT)
            rest, complaints = await process.communicate()
    events = [json.loads(line) for line in rest.splitlines()]
    assert events[-1]["completed"]["transcript"]["text"] == "the last words"
    assert (process.returncode, complaints) == (0, b"")


async def test_a_job_outlives_the_command_that_waits_for_it(tmp_path: Path):
    engine = ScriptedEngine(lambda call: "done")
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path) as served:
        process = await started(served.target, "jobs", "submit", "--wait", SPEECH)
        async with asyncio.timeout(60):
            await engine.until(n_calls=1)
            process.send_signal(signal.SIGINT)
            out, complaints = await process.communicate()
        assert (process.returncode, out) == (130, b"")
        job_id = complaints.split()[1].decode()
        assert f"`typeless jobs cancel {job_id}` ends it" in complaints.decode()
        engine.gate.set()
        assert (await typeless(served.target, "jobs", "watch", job_id))[:2] == (0, "done\n")


async def test_an_error_is_a_line_with_a_hint_and_v_adds_details():
    guarded = {"auth_enabled": True, "require_auth": True, "api_keys": "good"}
    async with serving(ScriptedEngine(), **guarded) as served:
        code, out, brief = await typeless(served.target, "transcribe", SPEECH)
        assert (code, out, brief.count("\n")) == (1, "", 1)
        assert brief.startswith(f"{SPEECH}: ")
        assert brief.endswith("(KEY_REQUIRED): set TYPELESS_API_KEY or --api-key\n")
        _, _, long = await typeless(served.target, "transcribe", "-v", SPEECH)
        _, _, field = await typeless(
            served.target, "transcribe", "-v", "--temperature", "7", "--api-key", "good", SPEECH
        )
    assert long.startswith(brief.rstrip("\n"))
    assert "\n  status: UNAUTHENTICATED\n  reason: KEY_REQUIRED\n" in long
    assert "\n  request id: " in long
    assert "\n  field: options.decoding.temperatures" in field


async def test_jobs_take_a_key_and_every_option_and_return_files(tmp_path: Path):
    engine = ScriptedEngine(lambda call: "hello there")
    guarded = {"auth_enabled": True, "require_auth": True, "api_keys": "good"}
    async with serving_jobs(engine, tmp_path, **guarded) as served:
        code, _, complaint = await typeless(served.target, "jobs", "stats")
        assert (code, "KEY_REQUIRED" in complaint) == (1, True)
        key = ("--api-key", "good")
        flags = ("--format", "srt", "--beam-size", "3", "--replace", "hello=bye", "--allow-language", "en")
        code, out, complaint = await typeless(served.target, "jobs", "submit", "--wait", *key, *flags, SPEECH)
        assert (code, out.splitlines()[0], out.splitlines()[2]) == (0, "1", "bye there"), complaint
        job_id = complaint.split()[1]
        assert (await typeless(served.target, "jobs", "get", *key, "-f", "srt", job_id))[1] == out
        code, _, complaint = await typeless(served.target, "jobs", "get", *key, "-f", "vtt", job_id)
        assert (code, "jobs submit --format vtt" in complaint) == (1, True)
        for words in (
            ("get", job_id),
            ("watch", job_id),
            ("list",),
            ("stats",),
            ("cancel", job_id),
            ("delete", job_id),
        ):
            code, out, complaint = await typeless(served.target, "jobs", words[0], "--json", *key, *words[1:])
            assert (code, complaint, len(out.splitlines())) == (0, "", 1), words
            json.loads(out)
    assert engine.calls[0].options.beam_size == 3


async def test_a_shell_can_complete_commands_and_flags():
    for typed, offered in (("typeless tra", "transcribe"), ("typeless jobs sub", "submit")):
        code, out, _ = await typeless(
            "", _TYPELESS_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(typed.count(" "))
        )
        assert (code, out.split()) == (0, [offered])
    _, script, _ = await typeless("", _TYPELESS_COMPLETE="source_bash")
    assert "_TYPELESS_COMPLETE" in script


@pytest.mark.parametrize(
    "words", ["transcribe", "stream", "batch", "bench", "jobs submit", "jobs get", "keys revoke"], ids=str.split
)
async def test_an_invalid_key_is_one_line_that_does_not_show_it(words: str):
    code, out, complaints = await typeless("127.0.0.1:9", *words.split(), SPEECH, TYPELESS_API_KEY="se\ncrét")
    assert (code, out) == (1, "")
    assert complaints == "typeless: the API key contains a line end, or a character that is not ASCII\n"


async def test_white_space_around_a_key_and_a_target_is_not_sent(tmp_path: Path):
    (tmp_path / "key").write_text("good\n", "utf-8")
    guarded = {"auth_enabled": True, "require_auth": True, "api_keys": "good"}
    async with serving(ScriptedEngine(lambda call: "hello"), **guarded) as served:
        target = f" {served.target}\n"
        for key in ({"TYPELESS_API_KEY": "good\r\n"}, {"TYPELESS_API_KEY_FILE": str(tmp_path / "key")}):
            assert await typeless(target, "transcribe", SPEECH, **key) == (0, "hello\n", "")


@pytest.mark.parametrize("target", ["höst:1", "http://localhost:50051", "a b:1"])
async def test_an_invalid_target_is_one_line(target: str):
    code, out, complaints = await typeless(target, "transcribe", SPEECH)
    assert (code, out, complaints.count("\n")) == (1, "", 1)
    assert "HOST:PORT" in complaints


async def test_the_variable_of_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = f"http://127.0.0.1:{free_port()}"
    code, _, complaints = await typeless("server.example:1", "transcribe", SPEECH, http_proxy=proxy)
    assert (code, complaints.count("\n")) == (1, 1)
    assert "through the proxy that http_proxy names: set no_proxy=server.example to avoid it" in complaints
