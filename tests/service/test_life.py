"""The server's life as clients see it: health, reflection, and how it stops."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.harness import Served, request, serving, serving_jobs
from tests.service.test_transcribe import refused
from typeless_grpc.app.root import listen
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.pb.v1 import jobs_pb2, jobs_pb2_grpc, server_pb2
from typeless_grpc.stores.dbos.recovery import MaintenanceLoop

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["", "typeless.v1.TranscriptionService", "typeless.v1.ServerService"]


async def health(served: Served, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel)
    answer: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_server_is_serving_once_it_is_warm(service: str):
    async with serving(ScriptedEngine(), warm=False) as served:
        assert await health(served, service) == NOT_SERVING
        await served.server.serving()
        assert await health(served, service) == SERVING


async def test_the_health_of_an_unknown_service_is_not_found():
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(served, "typeless.v1.Nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_is_notified_of_the_end_and_does_not_delay_it():
    async with serving(ScriptedEngine(), drain_timeout_s=60) as served:
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        # A watching client must be reading: gRPC discards what is unread when a call is cancelled.
        reading = asyncio.ensure_future(watch.read())
        async with asyncio.timeout(30):
            await served.server.stop()
        assert (await reading).status == NOT_SERVING


async def test_a_stalled_engine_is_not_serving_until_it_recovers_and_watchers_are_notified():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, engine_stall_s=1) as served:
        watches = [
            health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=service))
            for service in SERVICES
        ]
        assert [(await watch.read()).status for watch in watches] == [SERVING] * 3
        running = served.transcription.Transcribe(request())
        assert [(await watch.read()).status for watch in watches[:2]] == [NOT_SERVING] * 2
        assert [await health(served, service) for service in SERVICES] == [NOT_SERVING, NOT_SERVING, SERVING]
        engine.gate.set()
        await running
        assert [(await watch.read()).status for watch in watches[:2]] == [SERVING] * 2


@contextmanager
def without_tables(database: sqlite3.Connection) -> Iterator[None]:
    """As after a disaster, or an operator's mistake."""
    database.execute("ALTER TABLE jobs RENAME TO elsewhere")
    yield
    database.execute("ALTER TABLE elsewhere RENAME TO jobs")


@contextmanager
def locked(database: sqlite3.Connection) -> Iterator[None]:
    """As by a copy that never ends: it can be read, and not written."""
    database.execute("BEGIN IMMEDIATE")
    yield
    database.rollback()


@pytest.mark.parametrize("unusable", [without_tables, locked])
async def test_without_the_database_only_jobs_are_not_serving(
    tmp_path: Path, unusable: Callable[[sqlite3.Connection], AbstractContextManager[None]]
):
    services = ["typeless.v1.JobsService", "typeless.v1.UploadService", "", "typeless.v1.TranscriptionService"]
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        assert [await health(served, service) for service in services] == [SERVING] * 4
        stub = health_pb2_grpc.HealthStub(served.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=services[0]))
        assert (await watch.read()).status == SERVING
        with closing(sqlite3.connect(tmp_path / "jobs" / "jobs.db", isolation_level=None)) as database:
            with unusable(database):
                assert (await watch.read()).status == NOT_SERVING
                assert [await health(served, service) for service in services] == [NOT_SERVING] * 2 + [SERVING] * 2
            assert (await watch.read()).status == SERVING


async def test_jobs_whose_worker_died_are_not_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dies = threading.Event()
    monkeypatch.setattr(MaintenanceLoop, "run", lambda self, stopping: dies.wait())
    async with serving_jobs(ScriptedEngine(), tmp_path) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="typeless.v1.JobsService"))
        assert (await watch.read()).status == SERVING
        dies.set()
        async with asyncio.timeout(30):
            assert (await watch.read()).status == NOT_SERVING
        assert await health(served, "") == await health(served, "typeless.v1.UploadService") == SERVING


async def test_reflection_lists_and_describes_all_services():
    async with serving(ScriptedEngine()) as served:

        def listed() -> tuple[list[str], str]:
            with grpc.insecure_channel(served.target) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                file = database.FindFileContainingSymbol("typeless.v1.TranscriptionService")
                return sorted(database.get_services()), file.name

        services, file = await asyncio.get_running_loop().run_in_executor(None, listed)
    assert services == [
        "google.cloud.speech.v1.Speech",
        "google.cloud.speech.v1p1beta1.Speech",
        "google.cloud.speech.v2.Speech",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "nvidia.riva.asr.RivaSpeechRecognition",
        "typeless.v1.AdminService",
        "typeless.v1.ServerService",
        "typeless.v1.TranscriptionService",
    ]
    assert file == "typeless/v1/transcription.proto"


async def test_an_unknown_service_is_unimplemented():
    async with serving(ScriptedEngine()) as served:
        failed = await refused(jobs_pb2_grpc.JobsServiceStub(served.channel).GetJob(jobs_pb2.GetJobRequest()))
    assert failed.code is grpc.StatusCode.UNIMPLEMENTED


async def test_draining_refuses_new_calls_and_finishes_running_ones():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        running = served.transcription.Transcribe(request())
        await engine.until(n_calls=1)
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[1]))
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(served.server.stop())
        assert (await watch.read()).status == NOT_SERVING
        failed = await refused(served.transcription.Transcribe(request()))
        engine.gate.set()
        assert (await running).transcript.text == "1.0 seconds"
        await stopping
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert failed.retry_after_s
    assert len(engine.calls) == 1


async def test_a_long_response_arrives_completely_while_the_server_stops():
    n_characters = 8_000_000
    engine = ScriptedEngine(lambda call: "a" * n_characters)
    engine.gate.clear()
    async with serving(engine) as served:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(served.target, options=options) as channel:
            running = replace(served, channel=channel).transcription.Transcribe(request())
            await engine.until(n_calls=1)
            stopping = asyncio.create_task(served.server.stop())
            engine.gate.set()
            assert len((await running).transcript.text) == n_characters
            await stopping


async def test_calls_that_exceed_the_drain_timeout_are_cancelled():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, drain_timeout_s=0.2) as served:
        running = served.transcription.Transcribe(request())
        await engine.until(n_calls=1)
        async with asyncio.timeout(30):
            await served.server.stop()
        failed = await refused(running)
        await engine.until(n_cancelled=1)
    assert failed.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_an_idle_server_stops_at_once():
    async with serving(ScriptedEngine(), drain_timeout_s=60) as served:
        await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
        async with asyncio.timeout(30):
            await served.server.stop()


async def test_a_port_in_use_is_an_error_that_says_so():
    async with serving(ScriptedEngine()) as served:
        port = int(served.target.rpartition(":")[2])
        with pytest.raises(SourceUnavailable, match=f"Cannot listen on 127.0.0.1:{port}") as caught:
            async with listen(Settings(port=port), engine=ScriptedEngine(), detector=LoudnessDetector()):
                pass
    assert caught.value.reason == "ADDRESS_IN_USE"


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "this machine has no address 192.0.2.1"),
        ("[2001:db8::1]", "this machine has no address|not supported"),
        ("no-such-host.invalid", "'no-such-host.invalid' is no address"),
        ("two words", "'two words' is no address"),
        ("a" * 64, "is no address"),
    ],
)
@pytest.mark.parametrize("what", ["host", "metrics_host"])
async def test_an_address_that_this_machine_lacks_is_not_an_address_in_use(what: str, host: str, why: str):
    settings: dict[str, Any] = {"port": 0, "metrics_port": 0} | {what: host}
    with pytest.raises(SourceUnavailable, match=why) as caught:
        async with listen(Settings(**settings), engine=ScriptedEngine(), detector=LoudnessDetector()):
            pass
    assert caught.value.reason == "ADDRESS_UNUSABLE"


async def test_an_ipv6_address_needs_no_brackets():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    async with listen(Settings(host="::1", port=0), engine=ScriptedEngine(), detector=LoudnessDetector()) as listening:
        assert listening.port
