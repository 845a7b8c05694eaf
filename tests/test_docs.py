"""The documents are true: their commands run, their links lead somewhere, and their tables match the code."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import typer.main

from tests.harness import REPOSITORY
from typeless_grpc.cli.commands import app
from typeless_grpc.cli.reference import reference
from typeless_grpc.config import Settings
from typeless_grpc.telemetry.reference import reference as metrics_reference

README = (REPOSITORY / "README.md").read_text("utf-8")
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
BIN = Path(sys.executable).parent


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


# ---- tests without a server ---------------------------------------------------------------------------------------


def test_the_readme_can_be_read_in_one_sitting():
    assert README.count("\n") < 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8"))
    assert [to for to in targets if not to.startswith("http") and not (path.parent / to).exists()] == []


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if "decisions" not in path.parts], ids=lambda path: path.name
)
def test_modules_that_are_named_exist(path: Path):
    named = re.findall(r"`((?:\w+/)+\w+\.py)(?:::\w+)?`", path.read_text("utf-8"))
    places = (REPOSITORY, REPOSITORY / "typeless_grpc", path.parent)
    assert [one for one in named if not any((place / one).exists() for place in places)] == []


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M))
    sources = [*DOCUMENTS, REPOSITORY / ".ci" / "run", REPOSITORY / "Makefile"]
    texts = {path: path.read_text("utf-8") for path in sources}
    named = {name for text in texts.values() for name in re.findall(r"(?:`|\$ |: |^)make ([a-z][a-z-]*)", text, re.M)}
    assert {"run", "test", "check"} <= named
    assert named <= targets


def test_the_reference_of_settings_is_current():
    assert (REPOSITORY / "docs" / "configuration.md").read_text("utf-8") == reference(), "make golden"


def test_the_reference_of_metrics_is_current():
    assert (REPOSITORY / "docs" / "metrics.md").read_text("utf-8") == metrics_reference(), "make golden"


def test_settings_in_the_readme_have_their_true_defaults():
    rows = dict(re.findall(r"^\| `(TYPELESS_\w+)` \| `(\S+)` \|", README, re.M))
    assert rows
    true = dict(re.findall(r"\| `(TYPELESS_\w+)` \| `(.*?)` \|", reference()))
    assert rows == {name: true[name] for name in rows}


def test_defaults_that_the_guides_name_are_those_of_the_settings():
    unit = {"": 1, "s": 1, "h": 3600, "%": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    named = {
        (match[1].removeprefix("TYPELESS_").lower(), float(match[2].replace(",", "")) * unit[match[3] or ""])
        for path in DOCUMENTS
        for match in re.finditer(r"`([A-Za-z_]+)` \(([\d.,]+)(?: (s|h|%|KiB|MiB|GiB))?[,;)]", path.read_text("utf-8"))
    }
    settings = {(name, value) for name, value in named if name in Settings.model_fields}
    assert len(settings) > 10
    assert settings == {(name, float(Settings.model_fields[name].default)) for name, _ in settings}


# Limits that do not concern callers, or that another row includes.
NOT_OF_THE_TABLE = {
    *("max_batch", "max_model_memory_bytes", "max_concurrent_jobs", "rate_limit_enabled"),
    "rate_limit_anonymous_percent",
}


def limits_table() -> list[tuple[str, str, str]]:
    """The default, the status beyond it, and the setting of each row of the table of limits."""
    text = (REPOSITORY / "docs" / "limits.md").read_text("utf-8")
    return re.findall(r"^\| [^|*]+ \| ([^|]+) \| ([^|]+) \| `(\w+)` \|$", text, re.M)


def test_every_limit_is_in_the_table():
    known = {name for name in Settings.model_fields if name.startswith(("max_", "rate_limit_"))}
    in_table = [name for _, _, name in limits_table()]
    assert len(in_table) == len(set(in_table))
    assert known - NOT_OF_THE_TABLE <= set(in_table) <= set(Settings.model_fields)
    text = (REPOSITORY / "docs" / "limits.md").read_text("utf-8")
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", text)) <= set(Settings.model_fields) | {
        *("typeless_rate_limit_store_up", "too_many_pings")
    }


def test_limits_are_documented_with_the_defaults_of_the_settings():
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for documented, _, name in limits_table():
        default = Settings.model_fields[name].default
        if isinstance(default, str):
            rate, _, burst = default.partition(":")
            assert documented == (f"{rate}, {burst} at once" if burst else rate), name
            continue
        number, unit = re.search(r"([\d,]+)(?: (KiB|MiB|GiB|s)\b)?", documented).groups()  # type: ignore[union-attr]
        assert int(number.replace(",", "")) * units.get(unit, 1) == default, name


def test_the_status_beyond_a_limit_is_that_of_its_reason():
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", (REPOSITORY / "docs" / "errors.md").read_text("utf-8"), re.M)
    statuses = dict(rows)
    for _, beyond, name in limits_table():
        codes = re.findall(r"`([A-Z0-9_]+)`", beyond)
        named = [reason for reason in codes if reason in statuses and reason != "STREAM_IDLE"]
        assert all(statuses[reason].startswith(f"`{codes[0]}`") for reason in named), name


def reasons() -> Iterator[str]:
    """Every reason that one of our errors can have: the argument `reason`, its defaults, and the AUDIO_ constants."""
    for path in (REPOSITORY / "typeless_grpc").rglob("*.py"):
        if "pb" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant):
                yield str(node.value.value)
            elif isinstance(node, ast.arguments):
                named = zip(node.kwonlyargs, node.kw_defaults, strict=True)
                yield from (str(d.value) for a, d in named if a.arg == "reason" and isinstance(d, ast.Constant))
            elif isinstance(node, ast.Constant) and re.fullmatch(r"AUDIO_[A-Z_]+", str(node.value)):
                yield str(node.value)


def test_exactly_the_reasons_of_the_code_are_documented():
    documented = re.findall(r"^\| `([A-Z0-9_]+)` \|", (REPOSITORY / "docs" / "errors.md").read_text("utf-8"), re.M)
    assert documented == sorted(documented)
    of_the_proxy = {"NO_SERVER"}  # deploy/nginx.conf
    assert set(documented) == {reason for reason in reasons() if reason.isupper()} - {"AUDIO_ENCODING_"} | of_the_proxy


def test_every_test_that_the_reliability_guide_names_exists():
    named = re.findall(r"`(tests/[\w/.]+)?(?:::(\w+))?`", (REPOSITORY / "docs" / "reliability.md").read_text("utf-8"))
    file, missing = "", []
    for path, name in named:
        file = path or file
        source = REPOSITORY / file
        if not source.is_file() or not re.search(rf"def {name}\(" if name else "", source.read_text("utf-8")):
            missing.append(f"{file}::{name}")
    assert len(named) > 50
    assert missing == []


def commands(command: Any, words: tuple[str, ...] = ("typeless",)) -> Iterator[tuple[str, Any]]:
    """Every command by its words. A group is an object with commands: typer has a click of its own."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))
    if not hasattr(command, "commands"):
        yield " ".join(words), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def example(command: Any) -> str:
    found = re.search(r"^\s*Example: (typeless .*)$", command.help or "", re.M)
    assert found, "its help has no example"
    return found.group(1)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_a_commands_help_is_a_valid_command_line(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(re.split(r"[|>&]", example(COMMANDS[name]))[0])
    prefix = name.split()
    assert words[: len(prefix)] == prefix
    COMMANDS[name].make_context(name, words[len(prefix) :])


# ---- tests with a server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """`typeless serve` as users start it. ready: its output until it was ready."""

    port: int
    ready: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Running]:
    if await shell('typeless models list --json | grep -q \'"base", "path": null\'; echo $?') == "0\n":
        pytest.skip("model base is not on this machine: typeless models pull base")
    process = await asyncio.create_subprocess_exec(
        BIN / "typeless", "serve", "--port", "0", cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    assert process.stdout
    ready = ""
    async with asyncio.timeout(120):
        while "Transcribe" not in ready:
            line = await process.stdout.readline()
            assert line, "the server ended"
            ready += line.decode()
    found = re.search(r"takes calls on 127\.0\.0\.1:(\d+)", ready)
    assert found
    yield Running(int(found.group(1)), ready)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


def environment() -> dict[str, str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    if "TYPELESS_DATA_DIR" in os.environ:
        keep["TYPELESS_DATA_DIR"] = os.environ["TYPELESS_DATA_DIR"]
    return keep | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"], str(Path.home() / "go" / "bin")])}


async def shell(script: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=REPOSITORY, env=environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    return out.decode()


def skip_without_grpcurl(script: str) -> None:
    if "grpcurl" in script and not shutil.which("grpcurl", path=environment()["PATH"]):
        pytest.skip("no grpcurl on PATH or in ~/go/bin")


def shape(text: str) -> str:
    """Text without its numbers and without the commas of a sentence.

    Times and confidences differ between machines, and so does a comma: a model rounds otherwise on another processor.
    """
    return re.sub(r"\d+(\.\d+)*", "#", re.sub(r"(?<=\w), (?=\w)", " ", text.strip()))


CALLS = [block for block in blocks(README, "console") if "make " not in block]


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", CALLS, ids=lambda block: block.split()[1].rpartition("/")[2])
async def test_calls_of_the_readme_print_its_output(block: str, running: Running):
    command, _, expected = block.removeprefix("$ ").partition("\n")
    skip_without_grpcurl(command)
    here = command.replace("localhost:50051", f"localhost:{running.port}").replace(".venv/bin/", f"{BIN}/")
    assert shape(await shell(f"export TYPELESS_SERVER=localhost:{running.port}; {here}")) == shape(expected)


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_the_python_of_the_readme_runs(running: Running, tmp_path: Path):
    (script,) = blocks(README, "python")
    path = tmp_path / "readme.py"
    path.write_text(script.replace("localhost:50051", f"localhost:{running.port}"), encoding="utf-8")
    assert "The train to the coast leaves" in await shell(f"python {path}")


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_the_readme_shows_the_line_of_a_ready_server(running: Running):
    block = next(block for block in blocks(README, "console") if "make run" in block)
    assert shape(running.ready.splitlines()[0]) == shape(block.splitlines()[1])


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_the_commands_that_a_server_suggests_work(running: Running):
    suggested = [line.strip() for line in running.ready.partition("Try next:")[2].strip().splitlines()]
    assert len(suggested) == 3
    skip_without_grpcurl(running.ready)
    transcribed, listed, called = [await shell(command) for command in suggested]
    assert "The train to the coast leaves" in transcribed
    assert "typeless.v1.TranscriptionService" in listed
    assert "The train to the coast leaves" in called


@pytest.mark.model
async def test_the_example_without_a_server_starts_its_own():
    assert "--local" in example(COMMANDS["typeless transcribe"])
    assert "The train to the coast leaves" in await shell(example(COMMANDS["typeless transcribe"]))
