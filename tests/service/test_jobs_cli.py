"""`typeless jobs` against a server of the test's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.harness import AUDIO, serving_jobs
from typeless_grpc.cli.commands import app
from typeless_grpc.engine.scripted import ScriptedEngine


async def typeless(target: str, *words: str) -> tuple[int, str, str]:
    """The exit code, output and complaints."""
    server = {"TYPELESS_SERVER": target}
    done = await asyncio.to_thread(CliRunner().invoke, app, list(words), env=server, prog_name="typeless")
    return done.exit_code, done.stdout, done.stderr


RECORDING = str(AUDIO / "en_short.flac")


async def test_a_job_from_submission_to_deletion(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "good morning all"), tmp_path) as served:
        code, out, _ = await typeless(served.target, "jobs", "submit", "--wait", "--label", "team=a", RECORDING)
        assert (code, out) == (0, "good morning all\n")
        code, out, _ = await typeless(served.target, "jobs", "list", "--json", "--label", "team=a")
        (listed,) = [json.loads(line) for line in out.splitlines()]
        assert (code, listed["state"], listed["labels"]) == (0, "JOB_STATE_COMPLETED", {"team": "a"})
        job_id = listed["jobId"]
        code, out, _ = await typeless(served.target, "jobs", "list", "--state", "completed")
        assert (code, job_id in out, "team=a" in out) == (0, True, True)
        code, out, _ = await typeless(served.target, "jobs", "get", job_id)
        assert (code, out.splitlines()[0].split()) == (0, [job_id, "completed", "100%"])
        assert (await typeless(served.target, "jobs", "watch", job_id))[:2] == (0, "good morning all\n")
        assert (await typeless(served.target, "jobs", "cancel", job_id))[:2] == (0, "completed\n")
        assert (await typeless(served.target, "jobs", "delete", job_id))[:2] == (0, "")
        code, _, complaint = await typeless(served.target, "jobs", "get", job_id)
        assert (code, "JOB_NOT_FOUND" in complaint) == (1, True)
        code, out, _ = await typeless(served.target, "jobs", "stats")
        assert (code, "workers              1" in out) == (0, True)


async def test_a_job_keeps_its_text_in_the_requested_formats(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "good morning all"), tmp_path) as served:
        wanted = ["--format", "srt", "--format", "json", RECORDING]
        _, out, _ = await typeless(served.target, "jobs", "submit", *wanted)
        job_id = out.strip()
        assert (await typeless(served.target, "jobs", "watch", job_id))[0] == 0
        code, out, _ = await typeless(served.target, "jobs", "get", "--format", "json", job_id)
        assert (code, json.loads(out)["text"]) == (0, "good morning all")
        code, out, complaint = await typeless(served.target, "jobs", "get", "--format", "vtt", job_id)
        assert (code, out, "--format vtt" in complaint) == (1, "", True)
        code, out, _ = await typeless(served.target, "jobs", "submit", "--wait", "--format", "srt", RECORDING)
        assert (code, out.splitlines()[0], out.splitlines()[2]) == (0, "1", "good morning all")
        code, out, _ = await typeless(served.target, "jobs", "submit", "--wait", "--words", RECORDING)
        assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["good", "morning", "all"])


async def test_a_key_is_sent_with_every_call(tmp_path: Path):
    key = "a-key-of-the-test-that-is-long"
    settings = {"auth_enabled": True, "require_auth": True, "api_keys": [key]}
    async with serving_jobs(ScriptedEngine(), tmp_path, **settings) as served:
        code, _, complaint = await typeless(served.target, "jobs", "stats")
        assert (code, "KEY_REQUIRED" in complaint) == (1, True), complaint
        assert (await typeless(served.target, "jobs", "stats", "--api-key", key))[0] == 0
        wait = ["--wait", "--api-key", key, RECORDING]
        assert (await typeless(served.target, "jobs", "submit", *wait))[0] == 0


async def test_a_missing_server_is_an_error_within_seconds():
    async with asyncio.timeout(20):  # the client would repeat the call for 28 s
        code, out, complaint = await typeless("127.0.0.1:1", "jobs", "list")
    assert (code, out) == (1, "")
    assert "no server answers at 127.0.0.1:1" in complaint


async def test_a_failed_job_is_an_exit_code_and_a_reason(tmp_path: Path):
    no_audio = tmp_path / "no-audio.wav"
    no_audio.write_bytes(b"no audio at all")
    async with serving_jobs(ScriptedEngine(), tmp_path / "data") as served:
        code, out, complaint = await typeless(served.target, "jobs", "submit", "--wait", str(no_audio))
        assert (code, out) == (1, "")
        assert "AUDIO_UNDECODABLE" in complaint
        _, out, _ = await typeless(served.target, "jobs", "list", "--json", "--state", "failed")
        job_id = json.loads(out)["jobId"]
        code, out, complaint = await typeless(served.target, "jobs", "get", job_id)
        assert (code, "failed" in out, "AUDIO_UNDECODABLE" in complaint) == (1, True, True)


async def test_a_cancelled_job_is_an_exit_code_too(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        _, out, _ = await typeless(served.target, "jobs", "submit", RECORDING)
        job_id = out.strip()
        code, out, _ = await typeless(served.target, "jobs", "cancel", "--json", job_id)
        assert (code, json.loads(out)["state"]) == (0, "JOB_STATE_CANCELLED")
        code, out, complaint = await typeless(served.target, "jobs", "watch", job_id)
        assert (code, out, "cancelled" in complaint) == (1, "", True)


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "no-such-file.wav"],
        ["submit", "--priority", "urgent", RECORDING],
        ["submit", "--task", "sing", RECORDING],
        ["submit", "--label", "no-value", RECORDING],
        ["submit", "--wait", "--format", "srt", "--format", "vtt", RECORDING],
        ["list", "--state", "lost"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
async def test_an_invalid_command_line_is_an_error_before_any_call(words: list[str]):
    code, _, complaint = await typeless("127.0.0.1:1", "jobs", *words)
    assert code == 2, complaint
