"""Without traces: nothing of OpenTelemetry is imported, and settings that need its extra are refused."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.service.test_tracing import PIPE, SPEECH

pytestmark = pytest.mark.model


OFF = """
import asyncio, sys
from pathlib import Path

class Missing:  # as without the extra
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)

if sys.argv[2] == "without":
    sys.meta_path.insert(0, Missing())

from typeless_grpc.app.starting import build
from typeless_grpc.client import AsyncClient
from typeless_grpc.config import load
from typeless_grpc.telemetry import logs

async def main():
    logs.configure("warning", "json")
    async with build(load().settings) as app:
        await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            await client.transcribe(Path(sys.argv[1]))
            job = await client.jobs.submit(Path(sys.argv[1]))
            assert (await client.jobs.wait(job.job_id)).transcript.text
    print(*sorted(sys.modules))

asyncio.run(main())
"""


async def imported(directory: Path, extra: str, **variables: str) -> tuple[list[str], str]:
    """The modules of a program that has served a call and run a job, and its errors. extra: "with" or "without" it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TYPELESS_", "OTEL_"))}
    settings = {"TYPELESS_MODEL": "tiny.en", "TYPELESS_PORT": "0", "TYPELESS_STORAGE_URL": str(directory / "files")}
    settings |= {"TYPELESS_DATABASE_URL": f"sqlite:///{directory}/jobs.db"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OFF, str(SPEECH), extra), stdout=PIPE, stderr=PIPE, env=kept | settings | variables
    )
    out, errors = await asyncio.wait_for(process.communicate(), 120)
    return out.decode().split(), errors.decode()


@pytest.mark.parametrize(
    ("variables", "extra"),
    [
        ({}, "without"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, "with"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, "without"),
    ],
    ids=["unset", "disabled", "none"],
)
async def test_when_traces_are_off_we_import_nothing_of_opentelemetry(
    variables: dict[str, str], extra: str, tmp_path: Path
):
    modules, errors = await imported(tmp_path, extra, **variables)
    assert "typeless_grpc.app.root" in modules, errors
    # redis-py imports OpenTelemetry's metrics wherever they are installed.
    of_traces = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto")
    found = [name for name in modules if name.startswith((*of_traces, "typeless_grpc.telemetry.tracing"))]
    assert found == []
    assert extra == "with" or not [name for name in modules if name.startswith("opentelemetry")]


async def test_without_the_extra_the_variables_are_an_error_at_the_start(tmp_path: Path):
    modules, errors = await imported(tmp_path, "without", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert modules == []
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: is set, but traces need an extra" in errors
    assert "pip install 'typeless-grpc[otel]'" in errors
