"""The cookbook for grpcurl: its commands work as written, with reflection alone, and print what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.clients.serving import KEY, Running, run, served, tool
from tests.harness import REPOSITORY

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

COOKBOOK = REPOSITORY / "clients" / "grpcurl" / "README.md"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", COOKBOOK.read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if not tool("grpcurl"):
        pytest.skip("no grpcurl on PATH or in ~/go/bin")
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


def call_of(block: str) -> str:
    called = re.findall(r"localhost:50051 (\S+)", block)
    return str(called[-1]).rpartition("/")[2]


def test_every_command_has_an_output():
    assert len(BLOCKS) >= 10
    assert all(block.splitlines()[-1] and not block.splitlines()[-1].startswith("$ ") for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=call_of)
def test_a_command_prints_the_output_in_the_cookbook(block: str, server: Running):
    lines = block.splitlines()
    commands = "\n".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    expected = "\n".join(line for line in lines if not line.startswith("$ "))
    done = run("bash", "-c", commands.replace("localhost:50051", server.target), env=server.environment(KEY))
    assert without_numbers(done.stdout) == without_numbers(expected), done.stderr


def without_numbers(text: str) -> str:
    """Times and confidences differ from machine to machine; ports and versions from run to run."""
    return re.sub(r"\d+(\.\d+)*", "#", text.strip())
