"""Every block of code in `docs/` runs as it stands, against a server whose engine is scripted.

The project's recordings replace the reader's, and this module defines what a block leaves to the reader (`show`,
`keep`, a microphone). tests/test_docs.py runs `typeless serve` itself; this module only reads its settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.test_clients import LANGUAGES
from tests.harness import AUDIO, REPOSITORY, ServedJobs, serving_jobs
from tests.servers import free_port
from typeless_grpc.client import AsyncClient, Options
from typeless_grpc.config import load
from typeless_grpc.config.settings import SECRETS
from typeless_grpc.engine.scripted import ScriptedEngine

BIN = Path(sys.executable).parent
STAND_INS = {"lecture.mp3": "en_short.mp3", "call.wav": "en_short.wav", "meeting.flac": "en_short.flac"}
# There is no device here: test_microphone.py tests the microphone.
NO_DEVICE = r"stream mic|^arecord"
PRELUDE = """
import typeless_grpc.client.microphone
from pathlib import Path

shown, kept = [], []
show = lambda stable, unstable: shown.append(stable + unstable)
keep = lambda text: (kept.append(text), print(text))

async def recorded():
    yield Path("speech.raw").read_bytes()

typeless_grpc.client.microphone.async_microphone = recorded
"""


@dataclass(frozen=True)
class Block:
    document: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.strip().splitlines()[0][:60]}"


BLOCKS = [
    Block(path.name, language, text)
    for path in sorted((REPOSITORY / "docs").glob("*.md"))
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language in ("sh", "console") and "cd clients/" not in block.text]
BUILDS = [block for block in BLOCKS if "cd clients/" in block.text]
SETTINGS = [block for block in BLOCKS if block.language == "toml"]


SETTINGS = [block for block in BLOCKS if block.language == "toml"]


@pytest.mark.parametrize("block", SETTINGS, ids=str)
def test_settings_files_are_valid(block: Block, tmp_path: Path):
    file = tmp_path / "typeless.toml"
    file.write_text(block.text, encoding="utf-8")
    assert "file" in load(file=file).origins.values()


def test_no_block_is_of_a_kind_that_nothing_runs():
    rest = [block for block in BLOCKS if block not in [*PYTHON, *SHELL, *BUILDS, *SETTINGS]]
    assert {block.language for block in rest} <= {"text"}, rest  # pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder, with recordings and the project's `tests`."""
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    for name, file in STAND_INS.items():
        shutil.copy(AUDIO / file, tmp_path / name)
    shutil.copy(AUDIO / "en_short_s16le_16k.raw", tmp_path / "speech.raw")
    return tmp_path


async def ran(command: list[str], folder: Path, **env: str) -> tuple[int | None, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    kept |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=kept | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, out.decode(), errors.decode()


@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_python_runs(block: Block, folder: Path):
    console = f"localhost:{free_port()}"
    engine, port = ScriptedEngine(lambda call: "the decoded text"), int(console.partition(":")[2])
    async with serving_jobs(engine, folder / "data", console_port=port) as served:
        text = block.text.replace("localhost:50051", served.target).replace("localhost:8080", console)
        if re.search(r"^async |^\s*await ", text, re.M) and "def main" not in text:
            text = "async def main():\n" + "".join(f"    {line}\n" for line in text.splitlines())
            text += "import asyncio\nasyncio.run(main())\n"
        (folder / "block.py").write_text(PRELUDE + text, "utf-8")
        code, out, errors = await ran([sys.executable, "block.py"], folder)
    assert (code, errors) == (0, "")
    assert "the decoded text" in out


@pytest.mark.parametrize("block", [one for one in SHELL if one.document != "security.md"], ids=str)
async def test_commands_run(block: Block, folder: Path):
    engine = ScriptedEngine(lambda call: "the decoded text")
    port = free_port()
    async with serving_jobs(engine, folder / "data", console_port=port) as served:
        for line in block.text.splitlines():
            command = line.removeprefix("$ ").partition("  #")[0].strip()
            command = command.replace("localhost:8080", f"localhost:{port}")
            if not re.search(NO_DEVICE, command):
                await runs(command, served, folder)


async def runs(command: str, served: ServedJobs, folder: Path) -> None:
    if "JOB_ID" in command:
        command = command.replace("JOB_ID", await finished_job(served.target))
    code, _, errors = await ran(["bash", "-c", command], folder, TYPELESS_SERVER=served.target)
    assert code == 0, f"{command}\n{errors}"


async def finished_job(target: str) -> str:
    async with AsyncClient(target, api_key="") as client:
        job = await client.jobs.submit(AUDIO / "en_short.flac", Options(output_formats=("srt",)))
        await client.jobs.wait(job.job_id)
    return job.job_id


async def test_a_server_can_be_made_safe_as_the_security_guide_says(folder: Path):
    block, usage, _ = (block for block in SHELL if block.document == "security.md")
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    assert (await ran(made.split(), folder))[0] == 0
    assert block.text.rstrip().endswith("\ntypeless serve")
    script = "set -e\n" + block.text.replace("typeless serve", "typeless config --json")
    code, out, errors = await ran(["bash", "-c", script], folder, TYPELESS_DATA_DIR=str(folder / "data"))
    assert code == 0, errors
    secret, _, settings = out.partition("\n")
    assert len(secret) > 30
    in_force = {name: row["value"] for name, row in json.loads(settings).items()}
    assert in_force["auth_enabled"] is in_force["require_auth"] is True
    assert in_force["tls_cert_file"] == "cert.pem"
    code, out, errors = await ran(["bash", "-c", usage.text], folder, TYPELESS_DATA_DIR=str(folder / "data"))
    assert (code, errors) == (0, "")
    assert out.startswith("month,key_id,")


@pytest.mark.model
async def test_models_are_approved_as_the_security_guide_says(folder: Path):
    *_, approval = (block for block in SHELL if block.document == "security.md")
    script = "set -e\n" + approval.text.replace("large-v3", "tiny.en")
    approved = str(folder / "approved")
    code, out, errors = await ran(["bash", "-c", script], folder, TYPELESS_APPROVED_MODELS_FILE=approved)
    assert code == 0, errors
    assert (folder / "approved").is_file()
    assert "tiny.en" in out


@pytest.mark.parametrize("block", SETTINGS, ids=str)
async def test_settings_are_those_of_a_settings_file(block: Block, folder: Path):
    (folder / "typeless.toml").write_text(block.text, "utf-8")
    code, out, errors = await ran(["typeless", "config", "--config", "typeless.toml", "--json"], folder)
    assert code == 0, errors
    in_force = {name: row["value"] for name, row in json.loads(out).items()}
    written = {name: value for table in tomllib.loads(block.text).values() for name, value in table.items()}
    shown = {name: value for name, value in written.items() if name not in SECRETS}
    assert {name: in_force[name] for name in shown} == shown


@pytest.mark.parametrize("block", BUILDS, ids=str)
def test_a_client_is_built_and_called_as_its_tests_do(block: Block):
    """tests/clients builds the clients, which takes minutes. This test checks that the guide has the same commands."""
    first, *commands = block.text.strip().split(" && ")
    (language,) = (one for one in LANGUAGES if first == f"cd clients/{one.name}")
    *builds, call = [command.replace("'", "") for command in commands]
    documented = [" ".join(word for word in build.split() if word not in QUIET) for build in builds]
    assert documented == [" ".join(word for word in build if word not in QUIET) for build in language.builds]
    assert call == f"{' '.join(language.command)} transcribe ../../tests/audio/en_short.flac"


QUIET = {"-q", "-B", "--no-progress", "--locked"}
