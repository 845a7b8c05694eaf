"""The examples in the docstrings of the Python client run, and every public method has one."""

from __future__ import annotations

import asyncio
import doctest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.harness import AUDIO, REPOSITORY, serving_jobs
from typeless_grpc.client import AsyncClient, AsyncJobs, Client, Jobs, Options, aio, channels, jobs, sync
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import jobs_pb2, server_pb2, server_pb2_grpc


def public(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


@pytest.mark.parametrize("kind", [Client, Jobs], ids=lambda kind: kind.__name__)
def test_everything_public_has_an_example(kind: type):
    assert [name for name in public(kind) if ">>> " not in (getattr(kind, name).__doc__ or "")] == []


@pytest.mark.parametrize(("sync", "other"), [(Client, AsyncClient), (Jobs, AsyncJobs)], ids=["client", "jobs"])
def test_both_clients_have_the_same_methods(sync: type, other: type):
    assert public(sync) == public(other)


@pytest.mark.parametrize("module", [aio, channels, jobs, sync], ids=lambda module: module.__name__)
async def test_the_examples_print_the_output_that_they_show(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("TYPELESS_API_KEY", raising=False)
    async with serving_jobs(ScriptedEngine(lambda call: "please close the window"), tmp_path) as served:
        failed, n_examples = await asyncio.to_thread(examples, module, served.target)
    assert n_examples > 0
    assert failed == []


def examples(module: ModuleType, target: str) -> tuple[list[str], int]:
    """The output of the failed examples of a module, and the number of its examples."""
    complaints: list[str] = []
    n_examples = 0
    with Client(target) as open_client:
        job = open_client.jobs.submit(AUDIO / "en_short.flac")
        open_client.jobs.wait(job.job_id)
        given: dict[str, Any] = {
            "client": open_client,
            "job": job,
            "asyncio": asyncio,
            "Options": Options,
            "Path": Path,
            "jobs_pb2": jobs_pb2,
            "server_pb2": server_pb2,
            "server_pb2_grpc": server_pb2_grpc,
        }
        for test in doctest.DocTestFinder().find(module):
            for one in test.examples:
                one.source = one.source.replace("localhost:50051", target)
            test.globs = vars(module) | given
            n_examples += len(test.examples)
            doctest.DocTestRunner(verbose=False).run(test, out=complaints.append)
    return complaints, n_examples
