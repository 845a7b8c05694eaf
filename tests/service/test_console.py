"""The bridge of the console: the contract over HTTP and WebSocket, with the rules of gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import servers
from tests.harness import serving, serving_jobs
from tests.service.access import KEYS, USER, methods
from tests.service.console import END, HELLO, closed, config, receive, until, with_console
from tests.service.test_metrics import scrape
from tests.speech import BYTES_PER_S, cut, speech
from typeless_grpc.console import port
from typeless_grpc.console.activity import GAUGES, HISTOGRAMS
from typeless_grpc.console.contract import METHODS
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc, server_pb2

# ---- single requests ------------------------------------------------------------------------------------------


async def test_a_call_has_the_answer_that_grpc_has():
    async with with_console(serving, ScriptedEngine(lambda call: "hello")) as (served, site):
        answer = await site.call("TranscriptionService", "Transcribe", HELLO, x_request_id="mine")
        info = await site.call("ServerService", "GetServerInfo")
        over_grpc = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert (answer.status, answer.json["transcript"]["text"]) == (200, "hello")
    assert answer.headers["x-request-id"] == "mine"
    assert info.json["version"] == over_grpc.version
    assert int(info.json["maxMessageBytes"]) == over_grpc.max_message_bytes


def test_every_call_of_the_contract_can_be_carried():
    assert {method.path for method in METHODS.values()} == {name for name in methods() if name.startswith("/typeless.")}
    assert {name for name, method in METHODS.items() if method.data_field and method.streams_requests} == {
        ("TranscriptionService", "StreamTranscribe"),
        ("UploadService", "UploadAudio"),
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("/v1/TranscriptionService/Transcribe", b"{", 400, "JSON_INVALID"),
        ("/v1/TranscriptionService/Transcribe", b'{"audioo": {}}', 400, "JSON_INVALID"),
        ("/v1/TranscriptionService/Transcribe", b"[" * 100_000, 400, "JSON_INVALID"),
        ("/v1/TranscriptionService/Transcribe", b"\xff\xfe", 400, "JSON_INVALID"),
        ("/v1/TranscriptionService/Transcribe", b"{}", 400, "AUDIO_MISSING"),
        ("/v1/TranscriptionService/Transcribe", b" " * 9_000_000, 429, "MESSAGE_TOO_LARGE"),
        ("/v1/TranscriptionService/StreamTranscribe", b"{}", 501, "NOT_IMPLEMENTED"),
        ("/v1/TranscriptionService/Nothing", b"{}", 501, "NOT_IMPLEMENTED"),
        ("/v1/JobsService/GetJob", b"{}", 501, "NOT_IMPLEMENTED"),  # this server has no jobs
        ("/v1/AdminService/ListApiKeys", b"{}", 401, "KEY_REQUIRED"),
    ],
)
async def test_a_call_that_fails_has_the_reason_and_the_http_status_of_its_code(
    path: str, body: bytes, status: int, why: str
):
    async with with_console(serving, ScriptedEngine()) as (_, site):
        answer = await site.send(path, body, "POST", {"content-type": "application/json"})
    if why == "NOT_IMPLEMENTED" and "details" not in answer.json:  # from gRPC, which knows no such service
        assert answer.json["code"] == 12
    else:
        assert answer.reason == why
    assert answer.status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 400),
        ({"content-type": "application/json", "grpc-timeout": "soon"}, 400),
        ({"content-type": "application/json", "x-api-key": "k\xe9y"}, 400),
        ({"content-type": "application/json; charset=utf-8", "grpc-timeout": "20S"}, 200),
    ],
    ids=["not JSON", "a bad deadline", "a bad key", "good ones"],
)
async def test_headers_are_checked(headers: dict[str, str], status: int):
    async with with_console(serving, ScriptedEngine()) as (_, site):
        assert (await site.send("/v1/ServerService/GetServerInfo", b"{}", "POST", headers)).status == status


async def test_a_deadline_is_that_of_the_call():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site):
        answer = await site.call("TranscriptionService", "Transcribe", HELLO, grpc_timeout="200m")
        await engine.until(n_cancelled=len(engine.calls))
    assert (answer.status, answer.json["code"]) == (504, 4)


async def test_a_caller_that_leaves_cancels_its_call():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site):
        body = json.dumps(HELLO).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        head = (
            f"POST /v1/TranscriptionService/Transcribe HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        )
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        await engine.until(n_calls=1)
        writer.transport.abort()
        await engine.until(n_cancelled=1)


async def test_health_is_that_of_the_server():
    async with with_console(serving, ScriptedEngine(), warm=False) as (served, site):
        before = await site.send("/health")
        await served.server.serving()
        after = await site.send("/health")
    assert (before.status, before.json) == (503, {"status": "NOT_SERVING"})
    assert (after.status, after.json) == (200, {"status": "SERVING"})


async def test_a_connection_that_does_not_send_its_request_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(port, "HEAD_S", 0.5)
    async with with_console(serving, ScriptedEngine()) as (_, site):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(b"GET /health HTTP/1.1\r\n")

        async def send_slowly() -> None:
            while True:
                writer.write(b"x-slow: header\r\n")
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(send_slowly())
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        sending.cancel()
        writer.close()
        async with site.socket() as ws:  # one that has sent its request stays
            await ws.send(config())
            await receive(ws)
            await asyncio.sleep(1)
            await ws.send(END)
            assert (await closed(ws))[1] == 1000


# ---- jobs and uploads -----------------------------------------------------------------------------------------


async def test_a_recording_is_uploaded_transcribed_by_a_job_watched_and_deleted(tmp_path: Path):
    async with with_console(serving_jobs, ScriptedEngine(lambda call: "hello"), tmp_path) as (_, site):
        async with site.socket("/v1/UploadService/UploadAudio") as ws:
            await ws.send(json.dumps({"header": {"filename": "talk.wav"}}))
            for part in cut(_wav(speech(1.0, 1.0, 1.0)), [10_000]):
                await ws.send(part)
            await ws.send(json.dumps({"finish": {}}))
            await ws.send("")
            (uploaded,), code = await closed(ws)
        assert code == 1000
        assert uploaded["upload"]["complete"]
        request = {"audio": {"uri": uploaded["upload"]["uri"]}, "options": {"outputFormats": ["OUTPUT_FORMAT_SRT"]}}
        submitted = await site.call("JobsService", "SubmitJob", request)
        job = {"jobId": submitted.json["job"]["jobId"]}
        watched = await site.call("JobsService", "WatchJob", job)
        listed = await site.call("JobsService", "ListJobs")
        deleted = await site.call("JobsService", "DeleteJob", job)
        lost = await site.call("JobsService", "GetJob", job)
        watched_too_late = await site.call("JobsService", "WatchJob", {"jobId": "0" * 32})
    assert watched.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in watched.body.splitlines()]
    assert lines[-1]["result"]["job"]["state"] == "JOB_STATE_COMPLETED"
    assert "hello" in lines[-1]["result"]["job"]["transcript"]["renditions"][0]["content"]
    assert [one["jobId"] for one in listed.json["jobs"]] == [job["jobId"]]
    assert (deleted.status, deleted.json) == (200, {})
    assert (lost.status, lost.reason) == (404, "JOB_NOT_FOUND")
    assert (watched_too_late.status, watched_too_late.reason) == (404, "JOB_NOT_FOUND")


def _wav(data: bytes) -> bytes:
    size = len(data).to_bytes(4, "little")
    rates = (16_000).to_bytes(4, "little") + BYTES_PER_S.to_bytes(4, "little")
    head = b"WAVEfmt " + bytes([16, 0, 0, 0, 1, 0, 1, 0]) + rates + bytes([2, 0, 16, 0]) + b"data" + size
    return b"RIFF" + (len(head) + len(data)).to_bytes(4, "little") + head + data


# ---- metrics --------------------------------------------------------------------------------------------------


async def test_calls_are_counted_as_those_of_grpc():
    metrics_port = servers.free_port()
    async with with_console(serving, ScriptedEngine(), metrics_port=metrics_port) as (_, site):
        await site.call("ServerService", "GetServerInfo")
        async with site.socket() as ws:
            await ws.send(config())
            await ws.send(END)
            await closed(ws)
        seen = await scrape(metrics_port)
    counts = {name: n for name, n in seen.items() if name.startswith("grpc_server_handled_total") and n}
    assert sum(counts.values()) == 2
    assert all('grpc_code="OK"' in name for name in counts)


class OneModel(models_pb2_grpc.ModelServiceServicer):
    """A service with one model, which a server around a scripted engine lacks."""

    NAME = "typeless.v1.ModelService"

    def register(self, server: grpc.aio.Server) -> None:
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(name="base", is_default=True)])


async def test_activity_is_that_of_the_metrics_and_needs_a_key():
    engine = ScriptedEngine(lambda call: "hello")
    settings = KEYS | {"require_auth": True, "more": [OneModel()]}
    async with with_console(serving, engine, **settings) as (_, site), site.socket(key=USER) as ws:
        await ws.send(config())
        await ws.send(speech(1.0, 1.0))
        await until(ws, "segment")
        refused = await site.send("/v1/activity")
        answer = await site.send("/v1/activity", headers={"authorization": f"Bearer {USER}"})
    assert (refused.status, refused.reason) == (401, "KEY_REQUIRED")
    assert answer.status == 200
    assert answer.json["gauges"]["typeless_streams_open"] == {"": 1}
    # The scripted engine has no queue; the test of the page sees that of a real one.
    assert set(GAUGES) - set(answer.json["gauges"]) == {"typeless_queue_depth"}
    assert set(answer.json["histograms"]) == set(HISTOGRAMS)
    assert answer.json["histograms"]["typeless_final_latency_seconds"]["live"]["+Inf"] == 1


# ---- life -----------------------------------------------------------------------------------------------------


async def test_a_console_is_off_and_its_libraries_are_not_imported_by_default():
    import subprocess
    import sys

    code = (
        "import sys, typeless_grpc.app.root, typeless_grpc.app.starting\n"
        "print([m for m in ('uvicorn', 'starlette', 'websockets') if m in sys.modules])"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


async def test_a_server_that_stops_waits_for_no_idle_connection():
    async with with_console(serving, ScriptedEngine()) as (_, site):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
    assert loop.time() - began_s < 5
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "ADDRESS_IN_USE"), ("192.0.2.1", "ADDRESS_UNUSABLE"), ("no.such.name.invalid", "ADDRESS_UNUSABLE")],
)
async def test_an_address_that_cannot_be_used_fails_the_start(host: str, why: str):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SourceUnavailable) as caught:
        async with serving(ScriptedEngine(), console_host=host, console_port=taken.getsockname()[1]):
            pass
    assert caught.value.reason == why
    assert "console" in caught.value.message


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::", "[::]"])
async def test_a_console_on_every_address_can_be_reached_over_ipv4(host: str):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with with_console(serving, ScriptedEngine(), console_host=host) as (_, site):
        assert (await site.call("ServerService", "GetServerInfo")).status == 200


async def test_connections_are_bounded():
    async with with_console(serving, ScriptedEngine(), max_console_connections=2) as (_, site):
        kept = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(OSError):
            await site.send("/health")
        for _, writer in kept:
            writer.close()
            await writer.wait_closed()

        async def answers() -> None:
            while True:
                try:
                    assert (await site.send("/health")).status == 200
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    return

        await asyncio.wait_for(answers(), 30)
