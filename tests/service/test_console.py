"""The bridge of the console: the contract over HTTP and WebSocket, with the rules of gRPC."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.exceptions import InvalidStatus

from tests import servers
from tests.harness import pcm, serving, serving_jobs
from tests.service.access import ADMIN, KEYS, USER, guarded, methods
from tests.service.console import END, RAW, closed, config, reason, receive, texts, until, with_console
from tests.service.test_metrics import scrape
from tests.service.test_tls import Authority
from tests.speech import BYTES_PER_S, cut, samples_as_text, silence, speech, tone, words_as_they_come
from typeless_grpc.console import port
from typeless_grpc.console.activity import GAUGES, HISTOGRAMS
from typeless_grpc.console.contract import METHODS
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc, server_pb2

HELLO = {"audio": {"content": base64.b64encode(pcm()).decode(), "format": RAW}}


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
        await engine.until(n_cancelled=1)
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


# ---- streams --------------------------------------------------------------------------------------------------


async def test_a_stream_from_started_to_completed():
    async with (
        with_console(serving, ScriptedEngine(words_as_they_come)) as (_, site),
        site.socket() as ws,
    ):
        assert ws.subprotocol == "typeless.v1"
        await ws.send(config(interimResults=True, options={"language": "en"}))
        for part in cut(speech(1.0, 1.0), [3200]):
            await ws.send(part)
        await ws.send(json.dumps({"update": {"language": "de"}}))
        got = await until(ws, "configured")
        # The same, as JSON.
        await ws.send(json.dumps({"audio": base64.b64encode(speech(1.0, 1.0)).decode()}))
        await ws.send(END)
        more, code = await closed(ws)
    got += more
    assert code == 1000
    assert [int(message["sequence"]) for message in got] == list(range(1, len(got) + 1))
    assert [text.split()[:2] for text in texts(got)] == [["one", "two"]] * 2
    assert any("interim" in message for message in got)
    assert got[-1]["completed"]["endReason"] == "STREAM_END_REASON_CALLER"
    assert got[-1]["acknowledgedBytes"] == str(4 * BYTES_PER_S)


async def test_an_empty_message_half_closes():
    async with with_console(serving, ScriptedEngine(lambda call: "hello")) as (_, site), site.socket() as ws:
        await ws.send(config())
        await ws.send(tone(1.0))
        await ws.send("")
        got, code = await closed(ws)
    assert (texts(got), code) == (["hello"], 1000)


@pytest.mark.parametrize(
    ("messages", "code", "why"),
    [
        (["{"], 4003, "JSON_INVALID"),
        (['{"config": {"format": {"encoding": "MP3"}}}'], 4003, "JSON_INVALID"),
        (["[" * 5000], 4003, "JSON_INVALID"),
        ([b"\x00\x01"], 4003, "STREAM_ORDER"),  # config comes first
        ([config(options={"decoding": {"beamSize": 99}})], 4003, "INVALID_FIELD"),
        ([config(format=None, resumeSessionId="nothing")], 4005, "SESSION_NOT_FOUND"),
        ([config(), "", b"\x00\x00"], 4009, "REQUESTS_ENDED"),
    ],
)
async def test_a_stream_that_fails_ends_with_its_status(messages: list[str | bytes], code: int, why: str):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site), site.socket() as ws:
        for message in messages:
            await ws.send(message)
        got, closed_with = await closed(ws)
    error = got[-1]["error"]
    assert (reason(error), error["code"] + 4000) == (why, code)
    assert error["message"]
    assert closed_with == code


async def test_a_message_over_the_limit_closes_the_socket():
    async with with_console(serving, ScriptedEngine()) as (_, site), site.socket() as ws:
        await ws.send(config())
        await receive(ws)
        await ws.send(bytes(1024 * 1024 + 2))
        assert (await closed(ws))[1] == 1009


async def test_calls_with_a_single_request_have_no_socket():
    async with with_console(serving, ScriptedEngine()) as (_, site):
        for path in ("/v1/JobsService/GetJob", "/v1/JobsService/Nothing", "/nothing"):
            with pytest.raises(InvalidStatus) as caught:
                async with site.socket(path):
                    pass
            assert caught.value.response.status_code == 501


async def test_a_broken_stream_is_resumed():
    talk = speech(*(seconds for _ in range(4) for seconds in (0.7, 0.9)))
    async with with_console(serving, ScriptedEngine(samples_as_text)) as (_, site):
        async with site.socket() as ws:
            await ws.send(config())
            session = (await receive(ws))["started"]["sessionId"]
            for part in cut(talk[: len(talk) // 2], [3200]):
                await ws.send(part)
            got = await until(ws, "segment")
            ws.transport.abort()
        async with site.socket() as ws:
            await ws.send(
                json.dumps({"config": {"resumeSessionId": session, "resumeAfterSequence": got[-1]["sequence"]}})
            )
            started = await receive(ws)
            assert started["started"]["resumed"]
            for part in cut(talk[int(started["acknowledgedBytes"]) :], [3200]):
                await ws.send(part)
            await ws.send(END)
            more, _ = await closed(ws)
        async with site.socket() as ws:
            await ws.send(config())
            await ws.send(talk)
            await ws.send(END)
            whole, _ = await closed(ws)
    assert texts(got + more) == texts(whole)
    assert len(texts(whole)) == 4


async def test_a_socket_is_read_only_as_fast_as_the_engine_takes_its_audio():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with with_console(serving, engine) as (_, site), site.socket() as ws:
        await ws.send(config(mode="STREAM_MODE_FILE"))
        n_sent = 0

        async def send() -> None:
            nonlocal n_sent
            for _ in range(2000):
                await ws.send(bytes(256 * 1024))
                n_sent += 1

        # 500 MB; the server holds 6 minutes of audio (12 MB), and buffers on the way hold a few.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await send()
        assert 20 < n_sent < 400
        engine.gate.set()
        before = n_sent
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await send()
        assert n_sent > before


async def test_a_peer_that_does_not_read_loses_its_connection_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(port, "UNREAD_S", 1.0)
    engine = ScriptedEngine(lambda call: " ".join(map(str, range(20_000))))  # 100 kB
    async with with_console(serving, engine) as (_, site):
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", site.port))
        reader, writer = await asyncio.open_connection(sock=deaf)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
        writer.write(b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(frame(1, config().encode()))

        async def send() -> None:
            for part in cut(speech(*(0.3, 0.9) * 500), [32_000]):
                writer.write(frame(2, part))
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), 30)
        async with site.socket() as other:
            await other.send(config())
            await other.send(tone(1.0))
            await other.send(END)
            got, code = await closed(other)
        assert (len(texts(got)), code) == (1, 1000)
        writer.transport.abort()


def frame(opcode: int, payload: bytes) -> bytes:
    """A frame of a WebSocket, with a mask of zeros."""
    return bytes([0x80 | opcode, 0x80 | 126]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


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
            assert await asyncio.wait_for(reader.read(), 10) == b""
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


# ---- keys and addresses ---------------------------------------------------------------------------------------


async def test_keys_are_those_of_grpc():
    async with with_console(guarded, require_auth=True) as (_, site):
        calls = {
            "none": await site.call("ModelService", "ListModels"),
            "wrong": await site.call("ModelService", "ListModels", x_api_key="wrong"),
            "user": await site.call("AdminService", "ListApiKeys", authorization=f"Bearer {USER}"),
            "admin": await site.call("AdminService", "ListApiKeys", x_api_key=ADMIN),
        }
        assert {who: answer.status for who, answer in calls.items()} == {
            "none": 401,
            "wrong": 401,
            "user": 403,
            "admin": 200,
        }
        assert calls["user"].reason == "ADMIN_KEY_REQUIRED"
        for key, code in (("", 4016), ("wrong", 4016), (USER, 1000)):
            async with site.socket(key=key) as ws:
                await ws.send(config())
                await ws.send(END)
                assert (await closed(ws))[1] == code, key
        async with site.socket(key="", additional_headers={"x-api-key": USER}) as ws:
            await ws.send(config())
            assert "started" in await receive(ws)


async def test_a_stream_ends_when_its_key_is_revoked():
    async with with_console(guarded) as (_, site):
        made = await site.call("AdminService", "CreateApiKey", {"displayName": "a visitor"}, x_api_key=ADMIN)
        async with site.socket(key=made.json["secret"]) as ws:
            await ws.send(config())
            await receive(ws)
            key = {"keyId": made.json["apiKey"]["keyId"]}
            assert (await site.call("AdminService", "RevokeApiKey", key, x_api_key=ADMIN)).status == 200
            got, code = await closed(ws)
    assert (reason(got[-1]["error"]), code) == ("KEY_REVOKED", 4016)


async def test_a_quota_is_of_the_address_of_the_visitor_and_says_when_to_retry():
    limits = {"rate_limit_enabled": True, "rate_limit_config": "2/hour", "trusted_proxies": "127.0.0.1"}
    async with with_console(serving, ScriptedEngine(), **limits) as (_, site):

        async def call(address: str) -> Any:
            return await site.call("ServerService", "GetServerInfo", x_forwarded_for=address)

        assert [(await call("192.0.2.1")).status for _ in range(3)] == [200, 200, 429]
        assert (await call("192.0.2.2")).status == 200
        refused = await call("192.0.2.1")
    assert refused.reason == "RATE_LIMITED"
    assert int(refused.headers["retry-after"]) > 60


async def test_a_visitor_from_this_machine_sees_the_jobs_of_a_server_without_keys_and_one_behind_a_proxy_does_not(
    tmp_path: Path,
):
    async with with_console(serving_jobs, ScriptedEngine(), tmp_path) as (_, site):
        await site.call("JobsService", "SubmitJob", HELLO)
        here = await site.call("JobsService", "ListJobs")
        elsewhere = await site.call("JobsService", "ListJobs", x_forwarded_for="192.0.2.1")
    assert len(here.json["jobs"]) == 1
    assert elsewhere.json == {}


async def test_grpc_with_mutual_tls_has_a_console(tmp_path: Path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_client_ca_file": str(authority.ca)}
    async with with_console(serving, ScriptedEngine(), **files) as (_, site):
        assert (await site.call("ServerService", "GetServerInfo")).status == 200


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


# ---- pages of other sites -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]"}, 200),
        ({"host": "192.0.2.1:80", "origin": "http://192.0.2.1:80"}, 200),
        ({"host": "speech.example.com", "origin": "https://speech.example.com"}, 200),
        ({"origin": "https://speech.example.com"}, 200),
        ({"host": "evil.example"}, 403),  # DNS rebinding
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another port of this machine
        ({"origin": "https://speech.example.com.evil.example"}, 403),
    ],
)
async def test_pages_of_other_sites_are_refused(headers: dict[str, str], status: int):
    async with with_console(serving, ScriptedEngine(), console_origins="https://speech.example.com") as (_, site):
        sent = {"content-type": "application/json"} | headers
        answer = await site.send("/v1/ServerService/GetServerInfo", b"{}", "POST", sent)
        assert answer.status == status
        assert (await site.send("/", headers=headers)).status == status
        if "host" not in headers:
            if status == 200:
                async with site.socket(additional_headers=headers) as ws:
                    await ws.send(config())
                    assert "started" in await receive(ws)
            else:
                with pytest.raises(InvalidStatus):
                    async with site.socket(additional_headers=headers):
                        pass


async def test_a_page_of_a_named_origin_may_read_answers():
    origin = {"origin": "https://speech.example.com"}
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}
    async with with_console(serving, ScriptedEngine(), console_origins=origin["origin"]) as (_, site):
        preflight = await site.send("/v1/ServerService/GetServerInfo", None, "OPTIONS", origin | ask)
        answer = await site.call("ServerService", "GetServerInfo", **origin)
    assert preflight.status == 200
    for one in (preflight, answer):
        assert one.headers["access-control-allow-origin"] == origin["origin"]
        assert "access-control-allow-credentials" not in one.headers


async def test_the_page_comes_with_a_strict_policy():
    async with with_console(serving, ScriptedEngine()) as (_, site):
        page = await site.send("/")
        script = await site.send("/app.js")
        lost = await site.send("/../bridge.py")
        hidden = await site.send("/%2e%2e/bridge.py")
    assert page.status == script.status == 200
    assert lost.status == hidden.status == 404
    for answer in (page, script, lost):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert b"<script>" not in page.body
    assert b" style=" not in page.body
    assert b"http://" not in page.body.replace(b"http://www.w3.org", b"")


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


async def test_open_streams_get_their_finals_when_the_server_stops():
    engine = ScriptedEngine(lambda call: "hello")
    async with with_console(serving, engine, drain_timeout_s=10) as (served, site), site.socket() as ws:
        await ws.send(config())
        await ws.send(tone(1.0) + silence(0.1))
        await until(ws, "speechActivity")
        stopping = asyncio.create_task(served.server.stop())
        got = await until(ws, "warning")
        refused = await site.call("TranscriptionService", "Transcribe", HELLO)
        more, code = await closed(ws)
        await stopping
    assert reason_of_warning(got[-1]) == "DRAINING"
    assert (refused.status, refused.reason) == (503, "DRAINING")
    assert texts(more) == ["hello"]
    assert more[-1]["completed"]["endReason"] == "STREAM_END_REASON_DRAINING"
    assert code == 1000


def reason_of_warning(message: dict[str, Any]) -> str:
    return str(message["warning"]["reason"])


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

        await asyncio.wait_for(answers(), 10)


async def test_no_key_is_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    async with with_console(guarded, require_auth=True) as (_, site):
        await site.call("ModelService", "ListModels", x_api_key=USER)
        async with site.socket(key=USER) as ws:
            await ws.send(config())
            await receive(ws)
    encoded = base64.urlsafe_b64encode(USER.encode()).decode().rstrip("=")
    from_us = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    assert not [record for record in from_us if USER in record.getMessage() or encoded in record.getMessage()]
