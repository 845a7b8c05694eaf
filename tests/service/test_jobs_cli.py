"""`typeless jobs`, run as users run it, against a server of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.harness import AUDIO, serving_jobs
from typeless_grpc.engine.scripted import ScriptedEngine


async def typeless(target: str, *words: str) -> tuple[int, str, str]:
    """Exit code, what was printed, and what was complained about."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "typeless",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"TYPELESS_SERVER": target},
    )
    out, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), complaints.decode()


RECORDING = str(AUDIO / "en_short.flac")


async def test_a_job_from_submission_to_deletion(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda asked: "what was said"), tmp_path) as served:
        code, out, _ = await typeless(served.target, "jobs", "submit", "--wait", "--label", "team=a", RECORDING)
        assert (code, out) == (0, "what was said\n")
        code, out, _ = await typeless(served.target, "jobs", "list", "--json", "--label", "team=a")
        (listed,) = [json.loads(line) for line in out.splitlines()]
        assert (code, listed["state"], listed["labels"]) == (0, "JOB_STATE_COMPLETED", {"team": "a"})
        job_id = listed["jobId"]
        code, out, _ = await typeless(served.target, "jobs", "list", "--state", "completed")
        assert (code, job_id in out, "team=a" in out) == (0, True, True)
        code, out, _ = await typeless(served.target, "jobs", "get", job_id)
        assert (code, out.splitlines()[0].split()) == (0, [job_id, "completed", "100%"])
        assert (await typeless(served.target, "jobs", "watch", job_id))[:2] == (0, "what was said\n")
        assert (await typeless(served.target, "jobs", "cancel", job_id))[:2] == (0, "completed\n")
        assert (await typeless(served.target, "jobs", "delete", job_id))[:2] == (0, "")
        code, _, complaint = await typeless(served.target, "jobs", "get", job_id)
        assert (code, "JOB_NOT_FOUND" in complaint) == (1, True)
        code, out, _ = await typeless(served.target, "jobs", "stats")
        assert (code, "workers              1" in out) == (0, True)


async def test_a_job_that_fails_is_an_exit_code_and_a_reason(tmp_path: Path):
    no_audio = tmp_path / "no-audio.wav"
    no_audio.write_bytes(b"no audio at all")
    async with serving_jobs(ScriptedEngine(), tmp_path / "data") as served:
        code, out, complaint = await typeless(served.target, "jobs", "submit", "--wait", str(no_audio))
    assert (code, out) == (1, "")
    assert "AUDIO_UNDECODABLE" in complaint


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "no-such-file.wav"],
        ["submit", "--priority", "urgent", RECORDING],
        ["submit", "--task", "sing", RECORDING],
        ["submit", "--label", "no-value", RECORDING],
        ["list", "--state", "lost"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
async def test_a_command_line_that_makes_no_sense_is_told_before_any_call(words: list[str]):
    code, _, complaint = await typeless("127.0.0.1:1", "jobs", *words)
    assert code == 2, complaint
